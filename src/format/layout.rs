//! Every size and offset of an encrypted file.
//!
//! ```text
//! 0            header slot A
//! H/2 - 1024   header slot B
//! H - 2048     metadata of group 0: 64 blocks
//! H            blocks 0..64
//!              metadata page of group 1 (4096): 128 blocks
//!              blocks 64..192
//!              metadata page of group 2, its 128 blocks, …
//! ```
//!
//! H, the length of the head, is 4096 unless the volume asked for more room
//! for recipients. The last block is stored at its true length, so the plain
//! length is a function of the backing length alone.

/// Blocks in group 0, whose metadata shares the head with the header slots.
pub const FIRST_GROUP: u64 = 64;
/// Blocks in every later group.
pub const GROUP: u64 = 128;
/// Bytes of a metadata page.
pub const META_PAGE: u64 = 4096;
/// Bytes of group 0's metadata, at the end of the head.
pub const META_FIRST: u64 = 2048;
/// Block sizes a volume may choose.
pub const BLOCK_SIZES: [u32; 5] = [4096, 8192, 16384, 32768, 65536];
/// Head lengths a volume may choose.
pub const HEAD_SIZES: [u32; 3] = [4096, 8192, 16384];

/// Where things are in the files of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    block: u64,
    head: u64,
}

impl Layout {
    /// `None` unless the block size is one of [`BLOCK_SIZES`] and the head
    /// length one of [`HEAD_SIZES`].
    pub fn new(block_size: u32, head_size: u32) -> Option<Self> {
        (BLOCK_SIZES.contains(&block_size) && HEAD_SIZES.contains(&head_size)).then_some(Self {
            block: u64::from(block_size),
            head: u64::from(head_size),
        })
    }

    /// Bytes of plaintext in a full block.
    pub fn block_size(self) -> usize {
        self.block as usize
    }

    /// Bytes before block 0.
    pub fn head_size(self) -> usize {
        self.head as usize
    }

    /// Bytes of one header slot.
    pub fn slot_size(self) -> usize {
        ((self.head - META_FIRST) / 2) as usize
    }

    /// Offset of header slot 0 or 1.
    pub fn slot_offset(self, slot: usize) -> u64 {
        (slot * self.slot_size()) as u64
    }

    /// The block that holds plaintext offset `offset`.
    pub fn block_of(self, offset: u64) -> u64 {
        offset / self.block
    }

    /// Number of blocks a file of `plain` bytes has.
    pub fn block_count(self, plain: u64) -> u64 {
        plain.div_ceil(self.block)
    }

    /// Stored bytes of block `index` in a file of `plain` bytes (0 past the end).
    pub fn stored_len(self, index: u64, plain: u64) -> usize {
        plain.saturating_sub(index * self.block).min(self.block) as usize
    }

    /// The group of block `index` and the block's place in it.
    pub fn group_of(self, index: u64) -> (u64, usize) {
        if index < FIRST_GROUP {
            (0, index as usize)
        } else {
            let rest = index - FIRST_GROUP;
            (1 + rest / GROUP, (rest % GROUP) as usize)
        }
    }

    /// The first block of `group`.
    pub fn group_start(self, group: u64) -> u64 {
        if group == 0 {
            0
        } else {
            FIRST_GROUP + (group - 1) * GROUP
        }
    }

    /// How many blocks `group` has.
    pub fn group_blocks(self, group: u64) -> u64 {
        if group == 0 { FIRST_GROUP } else { GROUP }
    }

    /// Backing offset of the metadata of `group`.
    pub fn meta_offset(self, group: u64) -> u64 {
        if group == 0 {
            self.head - META_FIRST
        } else {
            self.head + FIRST_GROUP * self.block + (group - 1) * self.group_bytes()
        }
    }

    /// Bytes of the metadata of `group`.
    pub fn meta_len(self, group: u64) -> usize {
        (if group == 0 { META_FIRST } else { META_PAGE }) as usize
    }

    /// Backing offset of block `index`.
    pub fn block_offset(self, index: u64) -> u64 {
        let (group, at) = self.group_of(index);
        self.meta_offset(group) + self.meta_len(group) as u64 + at as u64 * self.block
    }

    /// Plain length of a file whose backing length is `backing`.
    pub fn plain_len(self, backing: u64) -> u64 {
        let first = FIRST_GROUP * self.block;
        let Some(rest) = backing.checked_sub(self.head) else {
            return 0;
        };
        if rest <= first {
            return rest;
        }
        let rest = rest - first;
        let full = rest / self.group_bytes();
        let tail = rest % self.group_bytes();
        first + full * GROUP * self.block + tail.saturating_sub(META_PAGE)
    }

    /// Backing length of a file of `plain` bytes; `None` where that passes the
    /// largest file offset (2^63 - 1). The empty file has no header.
    pub fn backing_len(self, plain: u64) -> Option<u64> {
        let first = FIRST_GROUP * self.block;
        let len = if plain == 0 {
            0
        } else if plain <= first {
            self.head + plain
        } else {
            let rest = plain - first;
            let full = rest / (GROUP * self.block);
            let tail = rest % (GROUP * self.block);
            let tail = if tail == 0 { 0 } else { META_PAGE + tail };
            (self.head + first)
                .checked_add(full.checked_mul(self.group_bytes())?)?
                .checked_add(tail)?
        };
        (len <= i64::MAX as u64).then_some(len)
    }

    /// Whether a writer can have left a backing file of this length.
    pub fn is_possible(self, backing: u64) -> bool {
        self.backing_len(self.plain_len(backing)) == Some(backing)
    }

    fn group_bytes(self) -> u64 {
        META_PAGE + GROUP * self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays a file out block by block, the slow and obvious way.
    fn brute(layout: Layout, plain: u64) -> (u64, Vec<u64>, Vec<u64>) {
        let (mut at, mut blocks, mut metas) = (layout.head, Vec::new(), vec![layout.head - 2048]);
        let mut left = plain;
        let mut index = 0;
        while left > 0 {
            if index >= 64 && (index - 64) % 128 == 0 {
                metas.push(at);
                at += 4096;
            }
            blocks.push(at);
            let stored = left.min(layout.block);
            at += stored;
            left -= stored;
            index += 1;
        }
        (if plain == 0 { 0 } else { at }, blocks, metas)
    }

    #[test]
    fn agrees_with_brute_force() {
        for (block, head) in [(4096, 4096), (4096, 16384), (65536, 8192)] {
            let layout = Layout::new(block, head).unwrap();
            let b = u64::from(block);
            let edges = [
                0,
                1,
                b - 1,
                b,
                b + 1,
                63 * b,
                64 * b,
                64 * b + 1,
                192 * b,
                192 * b + 1,
            ];
            let odd = (0..60).map(|i| i * (b * 7 + 13));
            for plain in edges.into_iter().chain(odd) {
                let (backing, blocks, metas) = brute(layout, plain);
                assert_eq!(layout.backing_len(plain), Some(backing), "plain {plain}");
                assert_eq!(layout.plain_len(backing), plain, "backing {backing}");
                assert!(layout.is_possible(backing));
                for (i, &at) in blocks.iter().enumerate() {
                    assert_eq!(layout.block_offset(i as u64), at, "block {i}");
                }
                for (g, &at) in metas.iter().enumerate() {
                    assert_eq!(layout.meta_offset(g as u64), at, "group {g}");
                }
            }
        }
    }

    #[test]
    fn groups_and_blocks_are_inverse() {
        let layout = Layout::new(4096, 4096).unwrap();
        for index in 0..1000 {
            let (group, at) = layout.group_of(index);
            assert_eq!(layout.group_start(group) + at as u64, index);
            assert!((at as u64) < layout.group_blocks(group));
        }
    }

    #[test]
    fn impossible_sizes_are_recognised() {
        let layout = Layout::new(4096, 4096).unwrap();
        assert!(layout.is_possible(0));
        assert!(!layout.is_possible(1));
        assert!(!layout.is_possible(4096), "an empty file has no header");
        let second = 4096 + 64 * 4096;
        assert!(layout.is_possible(second));
        assert!(!layout.is_possible(second + 1));
        assert!(!layout.is_possible(second + 4096));
        assert!(layout.is_possible(second + 4097));
    }

    #[test]
    fn the_largest_offsets_do_not_overflow() {
        let layout = Layout::new(4096, 4096).unwrap();
        assert_eq!(layout.backing_len(u64::MAX), None);
        assert_eq!(layout.backing_len(i64::MAX as u64), None);
        let plain = layout.plain_len(i64::MAX as u64);
        assert!(layout.backing_len(plain).is_some());
    }
}
