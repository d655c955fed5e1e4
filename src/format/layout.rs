//! Every size and offset of an encrypted file.
//!
//! ```text
//! 0            header slot A
//! H/2 - 1024   header slot B
//! H - 2048     metadata of group 0: 64 blocks
//! H            blocks 0..64
//!              cluster 0: metadata pages (4096 each) of groups 1 to C
//!                         their blocks, 128 a group
//!              cluster 1: metadata pages of groups C + 1 to 2·C
//!                         their blocks, …
//! ```
//!
//! H, the length of the head, is 4096 unless the volume asked for more room
//! for recipients. C, the groups of a cluster, is 8, so that the metadata of 4 MiB
//! comes from the disk at once; in format 1 it was 1. The last block is stored at its
//! true length, so the plain length is a function of the backing length alone.

use std::ops::Range;

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
/// Groups of a cluster that a volume may have: that of format 1 and that of format 2.
pub const CLUSTERS: [u32; 2] = [1, 8];

/// Where things are in the files of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    block: u64,
    head: u64,
    /// Groups whose metadata lies together.
    cluster: u64,
}

impl Layout {
    /// A new volume's. `None` unless the block size is one of [`BLOCK_SIZES`] and
    /// the head length one of [`HEAD_SIZES`].
    pub fn new(block_size: u32, head_size: u32) -> Option<Self> {
        Self::with_clusters(block_size, head_size, CLUSTERS[1])
    }

    /// Any volume's: `cluster` groups, one of [`CLUSTERS`], have their metadata
    /// together.
    pub fn with_clusters(block_size: u32, head_size: u32, cluster: u32) -> Option<Self> {
        let known = BLOCK_SIZES.contains(&block_size)
            && HEAD_SIZES.contains(&head_size)
            && CLUSTERS.contains(&cluster);
        known.then_some(Self {
            block: u64::from(block_size),
            head: u64::from(head_size),
            cluster: u64::from(cluster),
        })
    }

    /// Groups of a cluster.
    pub fn cluster_size(self) -> u32 {
        self.cluster as u32
    }

    /// The lowest format version that has this layout.
    pub fn format(self) -> u16 {
        if self.cluster == 1 { 1 } else { 2 }
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

    /// The group that the last block of a file of `plain` bytes is in; 0 for none.
    pub fn last_group(self, plain: u64) -> u64 {
        self.group_of(self.block_count(plain).saturating_sub(1)).0
    }

    /// The first place in `group` that only a block past the end of a file of
    /// `blocks` blocks could have; past its last place if there is none.
    pub fn first_past_end(self, group: u64, blocks: u64) -> usize {
        blocks.saturating_sub(self.group_start(group)) as usize
    }

    /// How many blocks `group` has.
    pub fn group_blocks(self, group: u64) -> u64 {
        if group == 0 { FIRST_GROUP } else { GROUP }
    }

    /// The groups whose metadata lies in one piece with that of `group`.
    pub fn cluster_of(self, group: u64) -> Range<u64> {
        if group == 0 {
            return 0..1;
        }
        let first = group - (group - 1) % self.cluster;
        first..first + self.cluster
    }

    /// How many blocks lie in one piece from block `index` on, up to the metadata
    /// of the next cluster.
    pub fn blocks_together(self, index: u64) -> u64 {
        if index < FIRST_GROUP {
            FIRST_GROUP - index
        } else {
            self.cluster_blocks() - (index - FIRST_GROUP) % self.cluster_blocks()
        }
    }

    /// Bytes of metadata of a whole cluster.
    pub fn cluster_meta_len(self) -> usize {
        self.cluster_meta() as usize
    }

    /// What commitments cover beside the lengths: nothing in format 1, which has no
    /// clusters.
    pub fn committed_cluster(self) -> impl Iterator<Item = u8> {
        let cluster = (self.format() > 1).then(|| self.cluster_size().to_le_bytes());
        cluster.into_iter().flatten()
    }

    /// Backing offset of the metadata of `group`.
    pub fn meta_offset(self, group: u64) -> u64 {
        if group == 0 {
            self.head - META_FIRST
        } else {
            let (cluster, page) = ((group - 1) / self.cluster, (group - 1) % self.cluster);
            self.cluster_offset(cluster) + page * META_PAGE
        }
    }

    /// Bytes of the metadata of `group`.
    pub fn meta_len(self, group: u64) -> usize {
        (if group == 0 { META_FIRST } else { META_PAGE }) as usize
    }

    /// Backing offset of block `index`.
    pub fn block_offset(self, index: u64) -> u64 {
        if index < FIRST_GROUP {
            return self.head + index * self.block;
        }
        let (rest, blocks) = (index - FIRST_GROUP, self.cluster_blocks());
        self.cluster_offset(rest / blocks) + self.cluster_meta() + (rest % blocks) * self.block
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
        let full = rest / self.cluster_bytes();
        let tail = rest % self.cluster_bytes();
        let tail = tail.saturating_sub(self.cluster_meta());
        first + full * self.cluster_blocks() * self.block + tail
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
            let blocks = self.cluster_blocks() * self.block;
            let (full, tail) = (rest / blocks, rest % blocks);
            let tail = if tail == 0 {
                0
            } else {
                self.cluster_meta() + tail
            };
            (self.head + first)
                .checked_add(full.checked_mul(self.cluster_bytes())?)?
                .checked_add(tail)?
        };
        (len <= i64::MAX as u64).then_some(len)
    }

    /// Whether a writer can have left a backing file of this length.
    pub fn is_possible(self, backing: u64) -> bool {
        self.backing_len(self.plain_len(backing)) == Some(backing)
    }

    fn cluster_offset(self, cluster: u64) -> u64 {
        self.head + FIRST_GROUP * self.block + cluster * self.cluster_bytes()
    }

    fn cluster_bytes(self) -> u64 {
        self.cluster_meta() + self.cluster_blocks() * self.block
    }

    fn cluster_meta(self) -> u64 {
        self.cluster * META_PAGE
    }

    fn cluster_blocks(self) -> u64 {
        self.cluster * GROUP
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
            if index >= 64 && (index - 64) % (128 * layout.cluster) == 0 {
                metas.extend((0..layout.cluster).map(|page| at + page * 4096));
                at += 4096 * layout.cluster;
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
        for (block, head, cluster) in [
            (4096, 4096, 1),
            (4096, 16384, 8),
            (4096, 4096, 8),
            (65536, 8192, 1),
            (65536, 8192, 8),
        ] {
            let layout = Layout::with_clusters(block, head, cluster).unwrap();
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
                1088 * b,
                1088 * b + 1,
                2112 * b + 5,
            ];
            let odd = (0..60).map(|i| i * (b * 7 + 13));
            for plain in edges.into_iter().chain(odd) {
                let (backing, blocks, metas) = brute(layout, plain);
                assert_eq!(layout.backing_len(plain), Some(backing), "plain {plain}");
                assert_eq!(layout.plain_len(backing), plain, "backing {backing}");
                assert!(layout.is_possible(backing));
                for (i, &at) in blocks.iter().enumerate() {
                    assert_eq!(layout.block_offset(i as u64), at, "block {i}");
                    let next = i + layout.blocks_together(i as u64) as usize;
                    let whole = blocks.len().saturating_sub(1);
                    if next < whole {
                        assert!(blocks[next] > blocks[next - 1] + b, "a gap before {next}");
                        assert_eq!(blocks[next - 1], at + (next - 1 - i) as u64 * b);
                    }
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
    fn clusters_part_the_groups() {
        let clusters = |cluster, groups: [u64; 5]| {
            let layout = Layout::with_clusters(4096, 4096, cluster).unwrap();
            groups.map(|group| layout.cluster_of(group))
        };
        assert_eq!(
            clusters(8, [0, 1, 8, 9, 20]),
            [0..1, 1..9, 1..9, 9..17, 17..25]
        );
        assert_eq!(
            clusters(1, [0, 1, 8, 9, 20]),
            [0..1, 1..2, 8..9, 9..10, 20..21]
        );
        assert_eq!(Layout::with_clusters(4096, 4096, 2), None);
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
        assert!(!layout.is_possible(second + 8 * 4096));
        assert!(layout.is_possible(second + 8 * 4096 + 1));
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
