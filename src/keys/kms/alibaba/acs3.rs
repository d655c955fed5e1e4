//! The signature of OpenAPI requests, ACS3-HMAC-SHA256.

use aws_lc_rs::{digest, hmac};
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::credentials::Credentials;
use crate::crypto::random;
use crate::keys::kms::time;
use crate::keys::kms::uri::percent_encode;

/// A request before it is signed. Its body, if any, is a form.
pub(super) struct Unsigned<'a> {
    pub(super) host: &'a str,
    pub(super) action: &'a str,
    pub(super) version: &'a str,
    pub(super) query: &'a [(&'static str, String)],
    pub(super) body: &'a [u8],
    /// The server's time, in seconds since 1970.
    pub(super) now: u64,
}

/// The headers of a signed request and the query to go with them.
pub(super) struct Signed {
    pub(super) query: String,
    pub(super) headers: Vec<(&'static str, Zeroizing<String>)>,
}

impl Unsigned<'_> {
    /// Signs the request; each time with a nonce of its own.
    pub(super) fn sign(&self, credentials: &Credentials) -> Signed {
        self.sign_with_nonce(credentials, &HEXLOWER.encode(&random::bytes::<16>()))
    }

    fn sign_with_nonce(&self, credentials: &Credentials, nonce: &str) -> Signed {
        let body_hash = sha256_hex(self.body);
        let text = |value: &str| Zeroizing::new(value.to_owned());
        // In the order of their names, as they are signed.
        let mut headers = Vec::new();
        if !self.body.is_empty() {
            headers.push(("content-type", text(FORM)));
        }
        headers.push(("host", text(self.host)));
        if credentials.token.is_some() {
            headers.push(("x-acs-accesskey-id", text(&credentials.id)));
        }
        headers.extend([
            ("x-acs-action", text(self.action)),
            ("x-acs-content-sha256", text(&body_hash)),
            ("x-acs-date", text(&time::iso8601(self.now))),
        ]);
        if let Some(token) = &credentials.token {
            headers.push(("x-acs-security-token", token.clone()));
        }
        headers.extend([
            ("x-acs-signature-nonce", text(nonce)),
            ("x-acs-version", text(self.version)),
        ]);
        let query = canonical_query(self.query);
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lengths = headers.iter().map(|(name, v)| 2 * name.len() + v.len() + 3);
        let longest = query.len() + lengths.sum::<usize>() + 2 * body_hash.len();
        // Holds the token, so it must not grow and leave a copy behind.
        let mut canonical = Zeroizing::new(String::with_capacity(longest));
        for part in ["POST\n/\n", &query, "\n"] {
            canonical.push_str(part);
        }
        for (name, value) in &headers {
            for part in [name, ":", value.trim(), "\n"] {
                canonical.push_str(part);
            }
        }
        for part in ["\n", &names, "\n", &body_hash] {
            canonical.push_str(part);
        }
        let to_sign = format!("{ALGORITHM}\n{}", sha256_hex(canonical.as_bytes()));
        let key = hmac::Key::new(hmac::HMAC_SHA256, credentials.secret.as_bytes());
        let signature = HEXLOWER.encode(hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let id = &credentials.id;
        let authorization =
            format!("{ALGORITHM} Credential={id},SignedHeaders={names},Signature={signature}");
        headers.push(("authorization", Zeroizing::new(authorization)));
        headers.push(("accept", text("application/json")));
        Signed { query, headers }
    }
}

const ALGORITHM: &str = "ACS3-HMAC-SHA256";
const FORM: &str = "application/x-www-form-urlencoded";

fn canonical_query(parameters: &[(&'static str, String)]) -> String {
    let mut pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| {
            format!(
                "{}={}",
                percent_encode(name, b""),
                percent_encode(value, b"")
            )
        })
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn sha256_hex(data: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, data).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of Alibaba Cloud's own description of the signature.
    #[test]
    fn the_published_example_comes_out() {
        let credentials = Credentials::new("YourAccessKeyId", "YourAccessKeySecret", None);
        let query = [
            (
                "ImageId",
                "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd".to_owned(),
            ),
            ("RegionId", "cn-shanghai".to_owned()),
        ];
        let request = Unsigned {
            host: "ecs.cn-shanghai.aliyuncs.com",
            action: "RunInstances",
            version: "2014-05-26",
            query: &query,
            body: b"",
            now: time::parse_iso8601("2023-10-26T10:22:32Z").unwrap(),
        };
        let signed = request.sign_with_nonce(&credentials, "3156853299f313e23d1673dc12e1703d");
        let authorization = signed.headers.iter().find(|(n, _)| *n == "authorization");
        assert_eq!(
            authorization.unwrap().1.as_str(),
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;\
             x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
             Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    #[test]
    fn nonces_differ_and_tokens_are_signed() {
        let token = Some("token".to_owned());
        let credentials = Credentials::new("id", "secret", token);
        let request = Unsigned {
            host: "h",
            action: "A",
            version: "1",
            query: &[("B", "2 +~".to_owned()), ("A", "1".to_owned())],
            body: b"x=1",
            now: 0,
        };
        let (one, two) = (request.sign(&credentials), request.sign(&credentials));
        assert_eq!(one.query, "A=1&B=2%20%2B~");
        let header = |signed: &Signed, name: &str| {
            let found = signed.headers.iter().find(|(n, _)| *n == name);
            found.unwrap().1.to_string()
        };
        let nonce = "x-acs-signature-nonce";
        assert_ne!(header(&one, nonce), header(&two, nonce));
        assert!(header(&one, "authorization").contains("content-type;host;x-acs-accesskey-id"));
        assert!(header(&one, "authorization").contains(";x-acs-security-token;"));
    }
}
