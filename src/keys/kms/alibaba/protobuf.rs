//! As much of protobuf's wire format as the instance protocol needs: strings,
//! bytes and small integers, none repeated.

use zeroize::Zeroizing;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is being written. Fields with the default value are left
/// out, as proto3 has it.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    pub(super) fn new() -> Self {
        // Never grows in practice, so leaves no unwiped copy behind.
        Self(Zeroizing::new(Vec::with_capacity(4096)))
    }

    pub(super) fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        if !value.is_empty() {
            self.varint(field << 3 | LENGTH_DELIMITED);
            self.varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }
        self
    }

    pub(super) fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub(super) fn number(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    pub(super) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A message that was read: slices of the answer, which owns and wipes them.
/// No answer has a number that matters.
pub(super) struct Message<'a>(Vec<(u64, &'a [u8])>);

impl<'a> Message<'a> {
    /// Reads a whole message; `None` if it is not one.
    pub(super) fn parse(mut input: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !input.is_empty() {
            let tag = take_varint(&mut input)?;
            let (number, kind) = (tag >> 3, tag & 7);
            if number == 0 {
                return None;
            }
            match kind {
                VARINT => {
                    take_varint(&mut input)?;
                }
                LENGTH_DELIMITED => {
                    let len = usize::try_from(take_varint(&mut input)?).ok()?;
                    fields.push((number, take(&mut input, len)?));
                }
                FIXED64 => {
                    take(&mut input, 8)?;
                }
                FIXED32 => {
                    take(&mut input, 4)?;
                }
                _ => return None,
            }
        }
        Some(Self(fields))
    }

    /// A field's bytes; empty if it is missing.
    pub(super) fn bytes(&self, field: u64) -> &'a [u8] {
        // The last one counts, says the specification.
        let found = self.0.iter().rev().find(|(number, _)| *number == field);
        found.map_or(&[], |(_, bytes)| bytes)
    }

    /// A field's text; `None` if it is not UTF-8, empty if it is missing.
    pub(super) fn text(&self, field: u64) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(field)).ok()
    }
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(taken)
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let [byte] = *take(input, 1)? else {
            return None;
        };
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        // From the protobuf documentation: field 1 = 150, field 2 = "testing".
        let message = Writer::new().number(1, 150).text(2, "testing").finish();
        assert_eq!(message.as_slice(), b"\x08\x96\x01\x12\x07testing");
        let read = Message::parse(&message).unwrap();
        assert_eq!(read.text(2), Some("testing"));
        assert_eq!(read.bytes(3), b"");
        assert!(Writer::new().number(1, 0).bytes(2, b"").finish().is_empty());
    }

    #[test]
    fn unknown_fields_are_skipped_and_the_last_one_counts() {
        let input = b"\x21\0\0\0\0\0\0\0\0\x2d\0\0\0\0\x0a\x01a\x0a\x01b";
        assert_eq!(Message::parse(input).unwrap().bytes(1), b"b");
    }

    #[test]
    fn damaged_messages_are_refused_and_never_panic() {
        for bad in [
            &b"\x0a"[..],
            b"\x0a\x05ab",
            b"\x08",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0b",
            b"\x00\x01",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert!(Message::parse(bad).is_none(), "{bad:?}");
        }
        proptest::proptest!(|(input: Vec<u8>)| { let _ = Message::parse(&input); });
    }
}
