//! A key with its versions: RSA keys of vaults, AES keys of Managed HSMs.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    KeyPair as RsaKeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use aws_lc_rs::signature::KeyPair;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::kms_servers::tokens::hex;

/// A wrapping key; its newest version is the current one.
pub struct Key {
    kind: Kind,
    /// Whether the policy keeps every caller from using it.
    pub denied: bool,
    /// Whether it keeps them from reading its public part.
    pub hidden: bool,
    pub versions: Vec<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rsa,
    Aes,
}

pub struct Version {
    pub id: String,
    pub enabled: bool,
    secret: Secret,
}

enum Secret {
    Rsa(RsaKeyPair),
    Aes([u8; 32]),
}

impl Key {
    pub fn new(kind: Kind) -> Self {
        let mut key = Self {
            kind,
            denied: false,
            hidden: false,
            versions: Vec::new(),
        };
        key.rotate();
        key
    }

    /// Adds a version.
    pub fn rotate(&mut self) {
        let secret = match self.kind {
            Kind::Rsa => Secret::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
            Kind::Aes => {
                let mut secret = [0; 32];
                aws_lc_rs::rand::fill(&mut secret).unwrap();
                Secret::Aes(secret)
            }
        };
        self.versions.push(Version {
            id: hex(16),
            enabled: true,
            secret,
        });
    }

    /// Enables or disables every version.
    pub fn set_enabled(&mut self, enabled: bool) {
        for version in &mut self.versions {
            version.enabled = enabled;
        }
    }
}

impl Version {
    pub(super) fn algorithm(&self) -> &'static str {
        match self.secret {
            Secret::Rsa(_) => "RSA-OAEP-256",
            Secret::Aes(_) => "A256KW",
        }
    }

    /// What everyone may know of it, as a JSON web key.
    pub(super) fn public(&self) -> Value {
        match &self.secret {
            Secret::Rsa(pair) => {
                let [n, e] = integers(pair.public_key().as_ref());
                json!({ "kty": "RSA", "n": BASE64URL_NOPAD.encode(n),
                    "e": BASE64URL_NOPAD.encode(e) })
            }
            Secret::Aes(_) => json!({ "kty": "oct-HSM" }),
        }
    }

    pub(super) fn wrap(&self, payload: &[u8]) -> Option<Vec<u8>> {
        match &self.secret {
            Secret::Rsa(pair) => {
                let public = OaepPublicEncryptingKey::new(private(pair).public_key()).ok()?;
                let mut out = vec![0; public.ciphertext_size()];
                let algorithm = &OAEP_SHA256_MGF1SHA256;
                Some(
                    public
                        .encrypt(algorithm, payload, &mut out, None)
                        .ok()?
                        .to_vec(),
                )
            }
            Secret::Aes(secret) => {
                let mut out = vec![0; payload.len() + 8];
                let kek = AesKek::new(&AES_256, secret).ok()?;
                Some(kek.wrap(payload, &mut out).ok()?.to_vec())
            }
        }
    }

    pub(super) fn unwrap(&self, wrapped: &[u8]) -> Option<Vec<u8>> {
        match &self.secret {
            Secret::Rsa(pair) => {
                let private = OaepPrivateDecryptingKey::new(private(pair)).ok()?;
                let mut out = vec![0; private.min_output_size()];
                let algorithm = &OAEP_SHA256_MGF1SHA256;
                Some(
                    private
                        .decrypt(algorithm, wrapped, &mut out, None)
                        .ok()?
                        .to_vec(),
                )
            }
            Secret::Aes(secret) => {
                let mut out = vec![0; wrapped.len()];
                let kek = AesKek::new(&AES_256, secret).ok()?;
                Some(kek.unwrap(wrapped, &mut out).ok()?.to_vec())
            }
        }
    }
}

fn private(pair: &RsaKeyPair) -> PrivateDecryptingKey {
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    PrivateDecryptingKey::from_pkcs8(der.as_ref()).unwrap()
}

/// Modulus and exponent in `SEQUENCE { INTEGER, INTEGER }`, without the zero that
/// keeps a modulus positive.
fn integers(der: &[u8]) -> [&[u8]; 2] {
    let (_, inside, _) = element(der);
    let (_, n, rest) = element(inside);
    let (_, e, _) = element(rest);
    [n.strip_prefix(&[0]).unwrap_or(n), e]
}

/// Tag and content of the first element in `der`, and what follows it.
fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (size, start) = match der[1] {
        short if short < 0x80 => (usize::from(short), 2),
        long => {
            let end = 2 + usize::from(long & 0x7f);
            let size = der[2..end]
                .iter()
                .fold(0, |size, byte| size << 8 | usize::from(*byte));
            (size, end)
        }
    };
    (der[0], &der[start..start + size], &der[start + size..])
}
