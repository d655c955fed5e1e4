//! Tag, type, length, value: how KMIP writes everything down.
//!
//! Reading is lazy and never recursive: a reader walks the items of one
//! structure, and whoever wants what is inside an item makes another. So no
//! input, however deep, costs more than its own bytes.

use zeroize::Zeroizing;

const STRUCTURE: u8 = 0x01;
const INTEGER: u8 = 0x02;
const ENUMERATION: u8 = 0x05;
const TEXT: u8 = 0x07;
const BYTES: u8 = 0x08;
const DATE_TIME: u8 = 0x09;
/// Tag (3 bytes), type (1), length (4).
pub(super) const HEADER: usize = 8;
const UNIT: usize = 8;

/// Why bytes are not what they should be; for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nonsense(pub(super) &'static str);

/// One item, whose value is not looked at yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) tag: u32,
    kind: u8,
    value: &'a [u8],
}

/// The items of a structure, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

/// The tag of the item that starts with `header`, and how many bytes of it
/// follow, padding included.
pub(super) fn header(header: &[u8; HEADER]) -> (u32, usize) {
    let [t1, t2, t3, _, l1, l2, l3, l4] = *header;
    let tag = u32::from_be_bytes([0, t1, t2, t3]);
    let length = u32::from_be_bytes([l1, l2, l3, l4]) as usize;
    (tag, length.div_ceil(UNIT).saturating_mul(UNIT))
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next item; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Item<'a>>, Nonsense> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (head, rest) = self
            .0
            .split_first_chunk::<HEADER>()
            .ok_or(Nonsense("an item is cut off"))?;
        let (tag, padded) = header(head);
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let (value, rest) = rest
            .split_at_checked(padded)
            .ok_or(Nonsense("an item is longer than what it is in"))?;
        self.0 = rest;
        Ok(Some(Item {
            tag,
            kind: head[3],
            value: &value[..length],
        }))
    }

    /// The first item with `tag`; those before it are passed over.
    pub(super) fn find(mut self, tag: u32) -> Result<Option<Item<'a>>, Nonsense> {
        while let Some(item) = self.next()? {
            if item.tag == tag {
                return Ok(Some(item));
            }
        }
        Ok(None)
    }

    /// The item with `tag`, which must be there.
    pub(super) fn need(self, tag: u32) -> Result<Item<'a>, Nonsense> {
        self.find(tag)?.ok_or(Nonsense("an item is missing"))
    }

    /// All items with `tag`.
    pub(super) fn all(mut self, tag: u32) -> Result<Vec<Item<'a>>, Nonsense> {
        let mut found = Vec::new();
        while let Some(item) = self.next()? {
            if item.tag == tag {
                found.push(item);
            }
        }
        Ok(found)
    }
}

impl<'a> Item<'a> {
    fn of_kind(self, kind: u8) -> Result<&'a [u8], Nonsense> {
        match self.kind == kind {
            true => Ok(self.value),
            false => Err(Nonsense("an item has the wrong type")),
        }
    }

    pub(super) fn structure(self) -> Result<Reader<'a>, Nonsense> {
        self.of_kind(STRUCTURE).map(Reader)
    }

    pub(super) fn integer(self) -> Result<i32, Nonsense> {
        let bytes = self.of_kind(INTEGER)?.try_into();
        let bytes = bytes.map_err(|_| Nonsense("an integer has the wrong length"))?;
        Ok(i32::from_be_bytes(bytes))
    }

    pub(super) fn enumeration(self) -> Result<u32, Nonsense> {
        let bytes = self.of_kind(ENUMERATION)?.try_into();
        let bytes = bytes.map_err(|_| Nonsense("an enumeration has the wrong length"))?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn date_time(self) -> Result<i64, Nonsense> {
        let bytes = self.of_kind(DATE_TIME)?.try_into();
        let bytes = bytes.map_err(|_| Nonsense("a date has the wrong length"))?;
        Ok(i64::from_be_bytes(bytes))
    }

    pub(super) fn text(self) -> Result<&'a str, Nonsense> {
        let bytes = self.of_kind(TEXT)?;
        std::str::from_utf8(bytes).map_err(|_| Nonsense("a text is not UTF-8"))
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Nonsense> {
        self.of_kind(BYTES)
    }
}

/// Writes items one after another; wiped when dropped.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// One with room for `capacity` bytes: within these it leaves no copies.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    pub(super) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    pub(super) fn structure(&mut self, tag: u32, content: impl FnOnce(&mut Self)) {
        self.head(tag, STRUCTURE, 0);
        let start = self.0.len();
        content(self);
        let length = (self.0.len() - start) as u32;
        self.0[start - 4..start].copy_from_slice(&length.to_be_bytes());
    }

    pub(super) fn integer(&mut self, tag: u32, value: i32) {
        self.item(tag, INTEGER, &value.to_be_bytes());
    }

    pub(super) fn enumeration(&mut self, tag: u32, value: u32) {
        self.item(tag, ENUMERATION, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, tag: u32, value: &str) {
        self.item(tag, TEXT, value.as_bytes());
    }

    pub(super) fn bytes(&mut self, tag: u32, value: &[u8]) {
        self.item(tag, BYTES, value);
    }

    fn head(&mut self, tag: u32, kind: u8, length: usize) {
        let [_, tag @ ..] = tag.to_be_bytes();
        self.0.extend_from_slice(&tag);
        self.0.push(kind);
        self.0.extend_from_slice(&(length as u32).to_be_bytes());
    }

    fn item(&mut self, tag: u32, kind: u8, value: &[u8]) {
        self.head(tag, kind, value.len());
        self.0.extend_from_slice(value);
        let padded = self.0.len().next_multiple_of(UNIT);
        self.0.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OUTER: u32 = 0x42_0078;

    #[test]
    fn the_examples_of_the_specification() {
        // KMIP 1.4, 9.1.2.
        let mut writer = Writer::with_capacity(128);
        writer.integer(0x42_0020, 8);
        writer.enumeration(0x42_0020, 255);
        writer.text(0x42_0020, "Hello World");
        writer.bytes(0x42_0020, &[1, 2, 3]);
        writer.structure(0x42_0020, |inner| {
            inner.enumeration(0x42_0004, 254);
            inner.integer(0x42_0005, 255);
        });
        let expected = "42002002000000040000000800000000\
                        4200200500000004000000ff00000000\
                        420020070000000b48656c6c6f20576f726c640000000000\
                        42002008000000030102030000000000\
                        42002001000000204200040500000004000000fe00000000\
                        4200050200000004000000ff00000000";
        let bytes = writer.finish();
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
        let mut reader = Reader::new(&bytes);
        let mut next = || reader.next().unwrap().unwrap();
        assert_eq!(next().integer(), Ok(8));
        assert_eq!(next().enumeration(), Ok(255));
        assert_eq!(next().text(), Ok("Hello World"));
        assert_eq!(next().bytes(), Ok(&[1, 2, 3][..]));
        let inner = next().structure().unwrap();
        assert_eq!(inner.need(0x42_0005).unwrap().integer(), Ok(255));
        assert!(inner.find(0x42_0006).unwrap().is_none());
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn what_is_cut_off_or_of_another_type_is_nonsense() {
        let mut writer = Writer::with_capacity(64);
        writer.structure(OUTER, |inner| inner.text(1, "a key's name"));
        let bytes = writer.finish();
        for length in 1..bytes.len() {
            assert!(Reader::new(&bytes[..length]).next().is_err(), "{length}");
        }
        let item = Reader::new(&bytes).need(OUTER).unwrap();
        assert!(item.integer().is_err() && item.text().is_err() && item.bytes().is_err());
        let mut longest = *b"\x42\0\x78\x01\xff\xff\xff\xff";
        assert!(Reader::new(&longest).next().is_err());
        assert!(header(&longest).1 >= u32::MAX as usize);
        longest[4] = 0;
        assert!(Reader::new(&longest).next().is_err());
    }

    /// Looks at everything that bytes could mean.
    fn walk(mut reader: Reader<'_>, depth: usize) -> usize {
        let mut items = 0;
        while let Ok(Some(item)) = reader.next() {
            items += 1;
            let _ = (item.integer(), item.enumeration(), item.date_time());
            let _ = (item.text(), item.bytes());
            if let (Ok(inner), true) = (item.structure(), depth < 64) {
                items += walk(inner, depth + 1);
            }
        }
        items
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            walk(Reader::new(&bytes), 0);
        }

        /// Mostly well-formed, so that the damage is met deep inside.
        #[test]
        fn damaged_messages_never_panic(
            texts in proptest::collection::vec("[a-z]{0,20}", 0..8),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut writer = Writer::with_capacity(1024);
            writer.structure(OUTER, |outer| {
                for text in &texts {
                    outer.structure(2, |inner| {
                        inner.text(3, text);
                        inner.bytes(4, text.as_bytes());
                        inner.integer(5, 7);
                    });
                }
            });
            let mut bytes = writer.finish();
            prop_assert_eq!(walk(Reader::new(&bytes), 0), 1 + 4 * texts.len());
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            walk(Reader::new(&bytes), 0);
        }
    }
}
