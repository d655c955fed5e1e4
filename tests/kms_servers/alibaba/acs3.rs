//! Verifying ACS3-HMAC-SHA256, from what the caller says it has signed.

use aws_lc_rs::{digest, hmac};
use data_encoding::HEXLOWER;

use super::{Refusal, World, is_recent, iso8601};
use crate::kms_servers::http::Request;

const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// Lets a request in, or says why not.
pub(super) fn verify(world: &mut World, request: &Request, now: u64) -> Result<(), Refusal> {
    let incomplete = Refusal(400, "IncompleteSignature");
    let authorization = request.header("authorization");
    let fields = authorization.strip_prefix(ALGORITHM).ok_or(incomplete)?;
    let field = |name: &str| {
        let mut fields = fields.trim().split(',');
        fields.find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
    };
    let id = field("Credential").ok_or(incomplete)?;
    let signed_names = field("SignedHeaders").ok_or(incomplete)?;
    let signature = field("Signature").ok_or(incomplete)?;
    let names: Vec<&str> = signed_names.split(';').collect();
    let must_be_signed = |name: &str| name == "host" || name.starts_with("x-acs-");
    let mut sent = request.headers.iter().map(|(name, _)| name.as_str());
    if sent.any(|name| must_be_signed(name) && !names.contains(&name)) {
        return Err(incomplete);
    }
    for needed in [
        "host",
        "x-acs-action",
        "x-acs-version",
        "x-acs-date",
        "x-acs-signature-nonce",
        "x-acs-content-sha256",
    ] {
        if !names.contains(&needed) {
            return Err(incomplete);
        }
    }
    let body_hash = hash(&request.body);
    if request.header("x-acs-content-sha256") != body_hash {
        return Err(Refusal(400, "InvalidContentSha256"));
    }
    let key = world.access_keys.get(id);
    let key = key.ok_or(Refusal(404, "InvalidAccessKeyId.NotFound"))?;
    let mut canonical = format!("{}\n{}\n", request.method, request.path);
    let mut query: Vec<&str> = request.query.split('&').collect();
    query.sort_unstable();
    canonical.push_str(&query.join("&"));
    canonical.push('\n');
    for name in &names {
        canonical.push_str(&format!("{name}:{}\n", request.header(name).trim()));
    }
    canonical.push_str(&format!("\n{signed_names}\n{body_hash}"));
    let to_sign = format!("{ALGORITHM}\n{}", hash(canonical.as_bytes()));
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret.as_bytes());
    let signature = HEXLOWER.decode(signature.as_bytes()).unwrap_or_default();
    if hmac::verify(&secret, to_sign.as_bytes(), &signature).is_err() {
        return Err(Refusal(400, "SignatureDoesNotMatch"));
    }
    if let Some(token) = &key.token {
        if request.header("x-acs-security-token") != token {
            return Err(Refusal(400, "InvalidSecurityToken.MismatchWithAccessKey"));
        }
        if key.ended {
            return Err(Refusal(400, "InvalidSecurityToken.Expired"));
        }
    }
    if !is_recent(request.header("x-acs-date"), now, iso8601) {
        return Err(Refusal(400, "InvalidTimeStamp.Expired"));
    }
    if !world.is_fresh(request.header("x-acs-signature-nonce")) {
        return Err(Refusal(400, "SignatureNonceUsed"));
    }
    Ok(())
}

pub(super) fn hash(data: &[u8]) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, data).as_ref())
}
