//! The file that remembers change times over an unmount.

use crate::types::TimeSpec;

use super::wire::Reader;

/// Name of the file in the root of a volume.
pub const TIMES_NAME: &[u8] = b"kmsfs.times";

/// What the file begins with.
const MAGIC: [u8; 16] = *b"kmsfs times 1\n\0\0";

/// The change time of one backing file, and the one that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeTime {
    /// Inode number on the host.
    pub ino: u64,
    /// What the host says. If it says something else by now, this is void.
    pub host: TimeSpec,
    /// What programs saw.
    pub shown: TimeSpec,
}

/// The file's content.
pub fn encode(times: &[ChangeTime]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for time in times {
        out.extend_from_slice(&time.ino.to_le_bytes());
        for TimeSpec { sec, nsec } in [time.host, time.shown] {
            out.extend_from_slice(&sec.to_le_bytes());
            out.extend_from_slice(&nsec.to_le_bytes());
        }
    }
    out
}

/// What is in the file; nothing if it is not one of these.
pub fn decode(bytes: &[u8]) -> Vec<ChangeTime> {
    let mut reader = Reader(bytes);
    let mut times = Vec::new();
    if reader.array() == Some(MAGIC) {
        while let Some(time) = decode_one(&mut reader) {
            times.push(time);
        }
    }
    times
}

fn decode_one(reader: &mut Reader<'_>) -> Option<ChangeTime> {
    let ino = reader.u64()?;
    let mut time = || {
        let (sec, nsec) = (reader.u64()? as i64, reader.u32()?);
        (nsec < 1_000_000_000).then_some(TimeSpec { sec, nsec })
    };
    let (host, shown) = (time()?, time()?);
    Some(ChangeTime { ino, host, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_were_written() {
        let time = |ino, sec| ChangeTime {
            ino,
            host: TimeSpec { sec, nsec: 1 },
            shown: TimeSpec {
                sec: -sec,
                nsec: 999_999_999,
            },
        };
        let times = [time(1, 5), time(u64::MAX, -7)];
        let bytes = encode(&times);
        assert_eq!(bytes.len(), 16 + 2 * 32);
        assert_eq!(decode(&bytes), times);
        assert_eq!(decode(&bytes[..bytes.len() - 1]), times[..1], "cut off");
        assert_eq!(decode(&encode(&[])), []);
        assert_eq!(decode(b""), []);
        let mut other = bytes.clone();
        other[12] ^= 1;
        assert_eq!(decode(&other), [], "of another kind");
        let mut wrong = bytes;
        wrong[16 + 19] = 0xff;
        assert_eq!(decode(&wrong), [], "no such time");
    }
}
