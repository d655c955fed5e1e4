//! Keys and what is wrapped with them.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};

/// A wrapping key.
pub struct Key {
    pub kind: Kind,
    pub state: State,
    /// Whether the policy keeps every caller from using it.
    pub denied: bool,
    pub versions: Vec<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Software,
    /// Lacks the Advance operations.
    Hardware,
    /// Made by a service for itself.
    Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Enabled,
    Disabled,
    PendingDeletion,
}

pub struct Version {
    /// 36 characters.
    pub id: String,
    secret: [u8; 32],
}

impl Key {
    pub fn new(kind: Kind) -> Self {
        let mut key = Self {
            kind,
            state: State::Enabled,
            denied: false,
            versions: Vec::new(),
        };
        key.rotate();
        key
    }

    /// Adds a version and makes it the primary one.
    pub fn rotate(&mut self) {
        let mut random = [0; 48];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let hex = data_encoding::HEXLOWER.encode(&random[..16]);
        let parts = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ];
        self.versions.push(Version {
            id: parts.join("-"),
            secret: random[16..].try_into().unwrap(),
        });
    }

    pub fn primary(&self) -> &Version {
        self.versions.last().unwrap()
    }
}

impl Version {
    /// IV, ciphertext with tag.
    pub fn seal(&self, plaintext: &[u8], aad: &[u8]) -> ([u8; 12], Vec<u8>) {
        let mut iv = [0; 12];
        aws_lc_rs::rand::fill(&mut iv).unwrap();
        let payload = Payload {
            msg: plaintext,
            aad,
        };
        let sealed = self.cipher().encrypt(&Nonce::from(iv), payload).unwrap();
        (iv, sealed)
    }

    pub fn open(&self, iv: &[u8], sealed: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
        let iv: [u8; 12] = iv.try_into().ok()?;
        let payload = Payload { msg: sealed, aad };
        self.cipher().decrypt(&Nonce::from(iv), payload).ok()
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&self.secret.into())
    }
}
