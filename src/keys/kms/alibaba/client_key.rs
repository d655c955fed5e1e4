//! Client keys: what a KMS instance knows its callers by.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use data_encoding::BASE64;
use p12_keystore::{KeyStore, Pkcs12ImportPolicy};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::keys::KeyError;
use crate::keys::kms::secret_text::SecretText;

const LARGEST_FILE: u64 = 64 * 1024;

/// A client key: an id and an RSA key pair.
pub(super) struct ClientKey {
    pub(super) id: String,
    pair: RsaKeyPair,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    key_id: String,
    private_key_data: SecretText,
}

impl ClientKey {
    /// Opens the file that the console gives out, with the password from
    /// another file.
    pub(super) fn open(path: &Path, password: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let password = read(password)?;
        let password = std::str::from_utf8(&password)
            .map(|text| text.trim_end_matches(['\r', '\n']))
            .map_err(|_| unusable(path, "its password is not UTF-8"))?;
        Self::parse(&text, password).map_err(|problem| unusable(path, &problem))
    }

    fn parse(text: &[u8], password: &str) -> Result<Self, String> {
        let file: File = serde_json::from_slice(text)
            .map_err(|_| "it is not JSON with KeyId and PrivateKeyData".to_owned())?;
        let archive = BASE64
            .decode(file.private_key_data.expose().trim().as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| "its PrivateKeyData is not base64".to_owned())?;
        let store = KeyStore::from_pkcs12(&archive, password, Pkcs12ImportPolicy::Relaxed)
            .map_err(|error| format!("wrong password, or a damaged PKCS#12: {error}"))?;
        let (_, chain) = store
            .private_key_chain()
            .ok_or("its PKCS#12 holds no private key")?;
        let pair = RsaKeyPair::from_pkcs8(chain.key().as_der())
            .map_err(|_| "its private key is not an RSA key of at least 2048 bits")?;
        Ok(Self {
            id: file.key_id,
            pair,
        })
    }

    /// Signs, with PKCS#1 v1.5 and SHA-256; in base64.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .expect("an RSA key of at least 2048 bits signs any message");
        BASE64.encode(&signature)
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    use std::io::Read;
    let mut content = Zeroizing::new(Vec::with_capacity(LARGEST_FILE as usize));
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE).read_to_end(&mut content))
        .map_err(|error| KeyError::Configuration {
            detail: format!("cannot read {}: {error}", path.display()),
            hint: None,
        })?;
    Ok(content)
}

fn unusable(path: &Path, problem: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!(
            "the client key {} cannot be used: {problem}",
            path.display()
        ),
        hint: Some(
            "client-key names the file from the KMS console, client-key-password-file \
             one with its password"
                .into(),
        ),
    }
}
