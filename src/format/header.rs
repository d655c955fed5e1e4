//! The header of an encrypted file: whose it is, and the wrapped data key.
//!
//! One slot, little-endian; the newest intact one of the two is the header:
//!
//! ```text
//! 0    8   magic "KMSFSHDR"
//! 8    2   lowest format version that may read the file
//! 10   2   lowest format version that may write the file
//! 12   2   format version that wrote the slot
//! 14   2   algorithm suite
//! 16   1   log2 of the block size
//! 17   1   log2 of the head length
//! 18   1   log2 of the groups of a cluster
//! 19   5   zero
//! 24   8   sequence number
//! 32   16  file id
//! 48   16  volume id
//! 64   32  key commitment
//! 96   40  zero (commit record of a later format)
//! 136  2   number of recipients
//! 138  2   bytes of recipients
//! 140  …   recipients: key URI, key version, algorithm, IV, wrapped key,
//!          each behind its u16 length
//!      …   zero
//! S-16 16  SHA-256 of all before, truncated
//! ```

use crate::types::{FileId, VolumeId};

use super::wire::{Reader, put_string};
use super::{FORMAT_VERSION, FormatError, Layout};

const MAGIC: &[u8; 8] = b"KMSFSHDR";
const FIXED: usize = 140;
const CHECKSUM: usize = 16;

/// A wrapped key as a header keeps it; `keys::WrappedKey` has the meaning of
/// each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// URI of the key that wrapped the data key.
    pub key_uri: String,
    /// Version of that key, or empty.
    pub key_version: String,
    /// Wrapping algorithm, or empty.
    pub algorithm: String,
    /// Wrapping IV, or empty.
    pub iv: Vec<u8>,
    /// The wrapped data key.
    pub ciphertext: Vec<u8>,
}

/// A header slot's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the algorithm suite.
    pub suite: u16,
    /// Where the file's blocks are.
    pub layout: Layout,
    /// Grows with every rewrite of the header.
    pub sequence: u64,
    /// The file.
    pub file: FileId,
    /// Its volume.
    pub volume: VolumeId,
    /// Proves that a data key is the one this header was made with.
    pub commitment: [u8; 32],
    /// Every one of them opens the file.
    pub recipients: Vec<Recipient>,
}

/// SHA-256, passed in because `format` does not import `crypto`.
pub type Sha256 = fn(&[u8]) -> [u8; 32];

impl Header {
    /// Makes sure that it can be encoded.
    ///
    /// # Errors
    /// `HeaderFull` if the recipients do not fit.
    pub fn check_room(&self) -> Result<(), FormatError> {
        self.encode_recipients().map(drop)
    }

    fn encode_recipients(&self) -> Result<Vec<u8>, FormatError> {
        let slot = self.layout.slot_size();
        let mut recipients = Vec::new();
        let full = |needed| FormatError::HeaderFull { needed, slot };
        for r in &self.recipients {
            for field in [
                r.key_uri.as_bytes(),
                r.key_version.as_bytes(),
                r.algorithm.as_bytes(),
                &r.iv,
                &r.ciphertext,
            ] {
                put_string(&mut recipients, field).ok_or(full(field.len()))?;
            }
        }
        if FIXED + recipients.len() + CHECKSUM > slot {
            return Err(full(recipients.len()));
        }
        Ok(recipients)
    }

    /// The slot's bytes, as long as the layout's slots are.
    ///
    /// # Errors
    /// `HeaderFull` if the recipients do not fit.
    pub fn encode(&self, sha256: Sha256) -> Result<Vec<u8>, FormatError> {
        let recipients = self.encode_recipients()?;
        let slot = self.layout.slot_size();
        let mut out = Vec::with_capacity(slot);
        out.extend_from_slice(MAGIC);
        let format = self.layout.format();
        for number in [format, format, format, self.suite] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.push(self.layout.block_size().ilog2() as u8);
        out.push(self.layout.head_size().ilog2() as u8);
        out.push(self.layout.cluster_size().ilog2() as u8);
        out.extend_from_slice(&[0; 5]);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.file.0);
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.commitment);
        out.extend_from_slice(&[0; 40]);
        out.extend_from_slice(&(self.recipients.len() as u16).to_le_bytes());
        out.extend_from_slice(&(recipients.len() as u16).to_le_bytes());
        out.extend_from_slice(&recipients);
        out.resize(slot - CHECKSUM, 0);
        let sum = sha256(&out);
        out.extend_from_slice(&sum[..CHECKSUM]);
        Ok(out)
    }

    /// The newest intact slot in the head of a file, and its number. `Ok(None)`
    /// if no header was ever written there (all bytes zero, or no bytes).
    ///
    /// # Errors
    /// `BadHeader` if something is there but no slot is intact, `TooNew` if
    /// the newest needs a later format.
    pub fn newest(
        head: &[u8],
        layout: Layout,
        sha256: Sha256,
    ) -> Result<Option<(usize, Self)>, FormatError> {
        let size = layout.slot_size();
        let slots = &head[..head.len().min(2 * size)];
        let decoded = slots
            .chunks(size)
            .enumerate()
            .filter_map(|(i, slot)| Some((i, Self::decode(slot, layout, sha256).ok()?)));
        match decoded.max_by_key(|(_, header)| header.as_ref().map_or(u64::MAX, |h| h.sequence)) {
            Some((i, Ok(header))) => Ok(Some((i, header))),
            Some((_, Err(too_new))) => Err(too_new),
            None if slots.iter().all(|&b| b == 0) => Ok(None),
            None => Err(FormatError::BadHeader),
        }
    }

    /// Any header whatever its volume's layout, for `kmsfs info`: the layout is
    /// read from the slot itself.
    pub fn sniff(head: &[u8], sha256: Sha256) -> Result<Option<(usize, Self)>, FormatError> {
        let mut result = Err(FormatError::BadHeader);
        for head_size in super::layout::HEAD_SIZES {
            let layout = Layout::new(4096, head_size).expect("a listed head size");
            result = Self::newest(head, layout, sha256);
            if matches!(result, Ok(Some(_)) | Err(FormatError::TooNew { .. })) {
                break;
            }
        }
        result
    }

    /// The outer error means the slot is not intact; the inner one that it is
    /// intact but may not be read.
    fn decode(
        slot: &[u8],
        layout: Layout,
        sha256: Sha256,
    ) -> Result<Result<Self, FormatError>, FormatError> {
        const BAD: FormatError = FormatError::BadHeader;
        if slot.len() != layout.slot_size() || !slot.starts_with(MAGIC) {
            return Err(BAD);
        }
        let (body, sum) = slot.split_at(slot.len() - CHECKSUM);
        if sum != &sha256(body)[..CHECKSUM] {
            return Err(BAD);
        }
        let mut r = Reader(&body[MAGIC.len()..]);
        let needs = r.u16().ok_or(BAD)?;
        if needs > FORMAT_VERSION {
            return Ok(Err(FormatError::TooNew { needs }));
        }
        Self::decode_body(&mut r, layout).ok_or(BAD).map(Ok)
    }

    fn decode_body(r: &mut Reader<'_>, volume_layout: Layout) -> Option<Self> {
        let (_write_min, _writer) = (r.u16()?, r.u16()?);
        let suite = r.u16()?;
        let (block, head, cluster) = (r.u8()?, r.u8()?, r.u8()?);
        let layout = Layout::with_clusters(
            1u32.checked_shl(block.into())?,
            1u32.checked_shl(head.into())?,
            1u32.checked_shl(cluster.into())?,
        )?;
        if layout.head_size() != volume_layout.head_size() || r.take(5)? != [0; 5] {
            return None;
        }
        let sequence = r.u64()?;
        let file = FileId(r.array()?);
        let volume = VolumeId(r.array()?);
        let commitment = r.array()?;
        if r.take(40)? != [0; 40] {
            return None;
        }
        let (count, bytes) = (r.u16()?, r.u16()?);
        let mut list = Reader(r.take(bytes.into())?);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let mut recipients = Vec::new();
        for _ in 0..count {
            recipients.push(Recipient {
                key_uri: text(list.string()?)?,
                key_version: text(list.string()?)?,
                algorithm: text(list.string()?)?,
                iv: list.string()?.to_vec(),
                ciphertext: list.string()?.to_vec(),
            });
        }
        let canonical = list.0.is_empty() && r.0.iter().all(|&b| b == 0);
        canonical.then_some(Self {
            suite,
            layout,
            sequence,
            file,
            volume,
            commitment,
            recipients,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::sha256;
    use proptest::prelude::*;

    fn sample(sequence: u64) -> Header {
        Header {
            suite: 1,
            layout: Layout::new(4096, 4096).unwrap(),
            sequence,
            file: FileId([3; 16]),
            volume: VolumeId([4; 16]),
            commitment: [5; 32],
            recipients: vec![Recipient {
                key_uri: "local:default".into(),
                key_version: "1".into(),
                algorithm: String::new(),
                iv: vec![],
                ciphertext: vec![9; 60],
            }],
        }
    }

    fn head(a: Option<&Header>, b: Option<&Header>) -> Vec<u8> {
        let slot = |h: Option<&Header>| h.map_or(vec![0; 1024], |h| h.encode(sha256).unwrap());
        [slot(a), slot(b), vec![0; 2048]].concat()
    }

    #[test]
    fn the_newest_intact_slot_wins() {
        let layout = Layout::new(4096, 4096).unwrap();
        let (one, two) = (sample(1), sample(2));
        let newest = |head: &[u8]| Header::newest(head, layout, sha256);
        assert_eq!(newest(&head(None, None)), Ok(None));
        assert_eq!(newest(&head(Some(&one), None)), Ok(Some((0, one.clone()))));
        let mut both = head(Some(&one), Some(&two));
        assert_eq!(newest(&both), Ok(Some((1, two))));
        both[1024 + 40] ^= 1;
        assert_eq!(newest(&both), Ok(Some((0, one))));
        both[40] ^= 1;
        assert_eq!(newest(&both), Err(FormatError::BadHeader));
        assert_eq!(newest(&[]), Ok(None));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let layout = Layout::new(4096, 4096).unwrap();
        let mut slot = sample(1).encode(sha256).unwrap();
        slot[8] = 3;
        let sum = sha256(&slot[..1008]);
        slot[1008..].copy_from_slice(&sum[..16]);
        slot.resize(4096, 0);
        assert_eq!(
            Header::newest(&slot, layout, sha256),
            Err(FormatError::TooNew { needs: 3 })
        );
    }

    #[test]
    fn too_many_recipients_are_an_error() {
        let mut header = sample(1);
        header.recipients[0].ciphertext = vec![0; 900];
        assert!(matches!(
            header.encode(sha256),
            Err(FormatError::HeaderFull { .. })
        ));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_noticed(bit in 0..1024usize * 8) {
            let layout = Layout::new(4096, 4096).unwrap();
            let mut bytes = head(Some(&sample(1)), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::newest(&bytes, layout, sha256).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let layout = Layout::new(4096, 4096).unwrap();
            let _ = Header::newest(&bytes, layout, sha256);
            let _ = Header::sniff(&bytes, sha256);
        }
    }
}
