//! A key with its versions.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};

use super::{RESOURCE, Refusal, refusal};

/// A symmetric key; its newest version is the primary one.
pub struct Key {
    /// Whether the policy keeps every caller from using it.
    pub denied: bool,
    pub versions: Vec<Version>,
}

pub struct Version {
    pub state: State,
    secret: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Enabled,
    Disabled,
    DestroyScheduled,
    Destroyed,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

impl Key {
    pub fn new() -> Self {
        let mut key = Self {
            denied: false,
            versions: Vec::new(),
        };
        key.rotate();
        key
    }

    /// Adds a version.
    pub fn rotate(&mut self) {
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret).unwrap();
        let state = State::Enabled;
        self.versions.push(Version { state, secret });
    }

    /// Changes the state of every version.
    pub fn set_state(&mut self, state: State) {
        for version in &mut self.versions {
            version.state = state;
        }
    }

    /// The version that did it, and what it made.
    pub(super) fn encrypt(
        &self,
        plaintext: &[u8],
        aad: &[u8],
    ) -> Result<(usize, Vec<u8>), Refusal> {
        let number = self.versions.len();
        let cipher = self.usable(number)?;
        let mut nonce = [0; 12];
        aws_lc_rs::rand::fill(&mut nonce).unwrap();
        let payload = Payload {
            msg: plaintext,
            aad,
        };
        let sealed = cipher.encrypt(&Nonce::from(nonce), payload).unwrap();
        let number_bytes = u32::try_from(number).unwrap().to_be_bytes();
        Ok((number, [&number_bytes[..], &nonce, &sealed].concat()))
    }

    pub(super) fn decrypt(
        &self,
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<(usize, Vec<u8>), Refusal> {
        let invalid = || {
            let text = "Decryption failed: the ciphertext is invalid.";
            refusal(400, "INVALID_ARGUMENT", text)
        };
        let (number, rest) = ciphertext.split_first_chunk().ok_or_else(invalid)?;
        let number = u32::from_be_bytes(*number) as usize;
        let (nonce, sealed) = rest.split_first_chunk::<12>().ok_or_else(invalid)?;
        if number == 0 || number > self.versions.len() {
            return Err(invalid());
        }
        let cipher = self.usable(number)?;
        let payload = Payload { msg: sealed, aad };
        let opened = cipher.decrypt(&Nonce::from(*nonce), payload);
        Ok((number, opened.map_err(|_| invalid())?))
    }

    fn usable(&self, number: usize) -> Result<Aes256Gcm, Refusal> {
        let version = &self.versions[number - 1];
        if version.state == State::Enabled {
            return Ok(Aes256Gcm::new(&version.secret.into()));
        }
        let text = format!(
            "{RESOURCE}/cryptoKeyVersions/{number} is not enabled, current state is: {}.",
            version.state.name()
        );
        let violation = match version.state {
            State::Disabled => "KEY_DISABLED",
            _ => "",
        };
        Err(Refusal(400, "FAILED_PRECONDITION", text, violation))
    }
}

/// CRC-32C by a table, unlike the code under test.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| {
            (0..8).fold(byte, |crc, _| match crc & 1 {
                1 => (crc >> 1) ^ 0x82f6_3b78,
                _ => crc >> 1,
            })
        })
        .collect();
    let sum = bytes.iter().fold(!0u32, |crc, byte| {
        table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    });
    !sum
}
