//! Memory that can be read into past the host's page cache.

use super::direct::ALIGNMENT;

/// Bytes that begin where a page does. Keeps its memory from one use to the next.
#[derive(Default)]
pub struct PageBuffer(Vec<u8>);

impl PageBuffer {
    /// `len` bytes of whatever was there before, or zeros.
    pub fn get(&mut self, len: usize) -> &mut [u8] {
        if len == 0 {
            return &mut [];
        }
        if self.0.len() < len + ALIGNMENT {
            // What was there need not be kept, so nothing is copied.
            self.0 = vec![0; len + ALIGNMENT];
        }
        let skip = self.skip();
        &mut self.0[skip..skip + len]
    }

    /// What is there from the first byte on: at least what the last [`Self::get`] gave.
    pub fn bytes(&self) -> &[u8] {
        let whole = self.0.as_slice();
        whole.get(self.skip()..).unwrap_or_default()
    }

    fn skip(&self) -> usize {
        self.0.as_ptr().align_offset(ALIGNMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_and_keeps_what_is_there() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.bytes().is_empty());
        for len in [1, 4096, 100_000, 10, 100_000] {
            let bytes = buffer.get(len);
            assert_eq!((bytes.len(), bytes.as_ptr().addr() % ALIGNMENT), (len, 0));
            bytes.fill(len as u8);
            assert!(buffer.bytes()[..len].iter().all(|&b| b == len as u8));
        }
        buffer.get(50_000)[7] = 1;
        assert_eq!(buffer.get(100_000)[7], 1);
    }
}
