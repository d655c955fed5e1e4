//! Newtypes shared by every layer.

use std::fmt;

use data_encoding::HEXLOWER;

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Thirty-two lowercase hexadecimal digits.
            pub fn to_hex(self) -> String {
                HEXLOWER.encode(&self.0)
            }

            /// Parses what [`Self::to_hex`] writes; `None` for anything else.
            pub fn from_hex(text: &str) -> Option<Self> {
                let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
                Some(Self(bytes.try_into().ok()?))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    };
}

random_id!(
    /// Identifies a volume; random, made at `kmsfs init`, kept in `kmsfs.json`.
    VolumeId
);
random_id!(
    /// Identifies one encrypted file; random, made with its data key, kept in
    /// the file's header and bound into every one of its blocks.
    FileId
);
random_id!(
    /// Identifies a directory: the associated data of the names inside it.
    DirId
);

/// Length of a data key: what the algorithm suite needs from the KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyLen {
    /// 16 bytes.
    Bits128,
    /// 24 bytes.
    Bits192,
    /// 32 bytes.
    Bits256,
}

impl KeyLen {
    /// The length in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bits128 => 16,
            Self::Bits192 => 24,
            Self::Bits256 => 32,
        }
    }

    /// The `KeyLen` of a key of `bytes` bytes, if there is one.
    pub fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            16 => Some(Self::Bits128),
            24 => Some(Self::Bits192),
            32 => Some(Self::Bits256),
            _ => None,
        }
    }
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpec {
    /// Whole seconds, rounded down.
    pub sec: i64,
    /// Nanoseconds since then.
    pub nsec: u32,
}
