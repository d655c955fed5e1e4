//! Who the server is, and who we are: certificates from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::uri::KmipUri;
use crate::keys::KeyError;
use crate::keys::local::read_private;

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    /// The files that the URI names, or else the environment.
    pub(super) fn find(uri: &KmipUri) -> Result<Self, KeyError> {
        let find = |named: &Option<PathBuf>, parameter: &str, variable: &str| {
            let default = || std::env::var_os(variable).filter(|value| !value.is_empty());
            let path = named.clone().or_else(|| default().map(PathBuf::from));
            path.ok_or_else(|| KeyError::Configuration {
                detail: format!("{} needs {parameter}=/PATH", uri.identity()),
                hint: Some(format!(
                    "add it to the key uri or set {variable}: a KMIP server and its clients know \
                     each other by their certificates"
                )),
            })
        };
        Ok(Self {
            ca: find(&uri.ca, "ca", "KMSFS_KMIP_CA")?,
            certificate: find(&uri.certificate, "cert", "KMSFS_KMIP_CERT")?,
            key: find(&uri.private_key, "key", "KMSFS_KMIP_KEY")?,
        })
    }

    /// Reads the files. This is done for every connection, so that certificates
    /// can be renewed under a mount.
    pub(super) fn read(&self) -> Result<Arc<ClientConfig>, KeyError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            let added = roots.add(certificate);
            added.map_err(|error| unusable(&self.ca, &error.to_string()))?;
        }
        let chain = certificates(&self.certificate)?;
        let key = self.private_key()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.ca, &error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&self.certificate, &error.to_string()))?;
        Ok(Arc::new(config))
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, KeyError> {
        let Some((pem, _)) = read_private(&self.key)? else {
            return Err(unusable(&self.key, "it does not exist"));
        };
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| KeyError::Configuration {
            detail: format!("{} holds no private key in PEM", self.key.display()),
            hint: Some(
                "the client's key must not have a password: protect the file by its mode, or \
                 hand it over by systemd-creds"
                    .into(),
            ),
        })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let pem = std::fs::read(path).map(Zeroizing::new);
    let pem = pem.map_err(|error| unusable(path, &error.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(unusable(path, "it holds no certificate in PEM")),
    }
}

fn unusable(path: &Path, problem: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("{} cannot be used: {problem}", path.display()),
        hint: Some(
            "ca= names the server's authority, cert= the client's certificate, key= its private \
             key, all PEM files"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FIXTURES: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/kms_servers/alibaba/fixtures"
    );

    fn problem(files: &Files) -> String {
        match files.read() {
            Err(KeyError::Configuration { detail, hint }) => {
                format!("{detail}: {}", hint.unwrap_or_default())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_checked_before_they_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        std::fs::copy(format!("{FIXTURES}/server-key.pem"), &key).unwrap();
        let mode = |mode| std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o600);
        let files = Files {
            ca: format!("{FIXTURES}/ca.pem").into(),
            certificate: format!("{FIXTURES}/server.pem").into(),
            key: key.clone(),
        };
        files.read().unwrap();
        mode(0o640);
        assert!(problem(&files).contains("chmod 600"));
        mode(0o600);
        std::fs::write(&key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
        assert!(problem(&files).contains("password"));
        std::fs::remove_file(&key).unwrap();
        assert!(problem(&files).contains("does not exist"));
        let no_certificate = Files {
            ca: format!("{FIXTURES}/README.md").into(),
            ..files
        };
        assert!(problem(&no_certificate).contains("no certificate"));
    }

    #[test]
    fn a_uri_without_files_says_what_to_add() {
        let uri = KmipUri::parse("kmip://h/1?ca=/c&cert=/c").unwrap();
        let Err(KeyError::Configuration { detail, .. }) = Files::find(&uri) else {
            panic!("no error")
        };
        assert_eq!(detail, "kmip://h/1 needs key=/PATH");
    }
}
