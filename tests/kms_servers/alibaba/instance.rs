//! The protocol of KMS instances.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use data_encoding::BASE64;

use super::keys::{Key, Kind};
use super::{CLIENT_KEY, FIXTURES, Refusal, World, acs3, http_date, is_recent, request_id};
use crate::kms_servers::http::{Reply, Request};

const ALGORITHM: &str = "AES_GCM";

/// Number and content of a field; integers as text.
enum Field<'a> {
    Bytes(u8, &'a [u8]),
    Number(u8, u32),
}
use Field::{Bytes, Number};

pub(super) fn refuse(Refusal(status, code): Refusal) -> Reply {
    let id = request_id();
    let body = encode(&[
        Number(1, status.into()),
        Bytes(2, code.as_bytes()),
        Bytes(3, b"refused by the test server"),
        Bytes(4, id.as_bytes()),
    ]);
    reply(status, body)
}

pub(super) fn handle(world: &mut World, request: &Request, now: u64) -> Reply {
    match answer(world, request, now) {
        Ok(body) => reply(200, body),
        Err(refusal) => refuse(refusal),
    }
}

fn reply(status: u16, body: Vec<u8>) -> Reply {
    Reply {
        status,
        headers: vec![("content-type", "application/x-protobuf".into())],
        body,
        ..Reply::default()
    }
}

fn verify(request: &Request, now: u64) -> Result<(), Refusal> {
    let mismatch = Refusal(401, "SignatureNotMatch");
    if request.header("x-kms-apiversion") != "dkms-gcs-0.2" {
        return Err(Refusal(400, "InvalidApiVersion"));
    }
    if request.header("x-kms-signaturemethod") != "RSA_PKCS1_SHA_256" {
        return Err(mismatch);
    }
    if request.header("x-kms-acccesskeyid") != CLIENT_KEY {
        return Err(Refusal(401, "Unauthorized"));
    }
    let body_hash = acs3::hash(&request.body).to_uppercase();
    if request.header("content-sha256") != body_hash {
        return Err(mismatch);
    }
    let mut to_sign = format!(
        "{}\n{body_hash}\n{}\n{}\n",
        request.method,
        request.header("content-type"),
        request.header("date"),
    );
    let ours = |(name, _): &&(String, String)| name.starts_with("x-kms-");
    let mut headers: Vec<_> = request.headers.iter().filter(ours).collect();
    headers.sort();
    for (name, value) in headers {
        to_sign.push_str(&format!("{name}:{}\n", value.trim()));
    }
    to_sign.push_str(&request.path);
    let authorization = request.header("authorization");
    let bearer = authorization.strip_prefix("Bearer ");
    let signature = bearer.or_else(|| authorization.strip_prefix("TOKEN "));
    let signature = BASE64.decode(signature.ok_or(mismatch)?.as_bytes());
    let public = std::fs::read(format!("{FIXTURES}/client-key-public.der")).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public)
        .verify(to_sign.as_bytes(), &signature.map_err(|_| mismatch)?)
        .map_err(|_| mismatch)?;
    if !is_recent(request.header("date"), now, http_date) {
        return Err(Refusal(400, "RequestTimeTooSkewed"));
    }
    Ok(())
}

fn answer(world: &mut World, request: &Request, now: u64) -> Result<Vec<u8>, Refusal> {
    verify(request, now)?;
    let fields = decode(&request.body).ok_or(Refusal(400, "InvalidParam"))?;
    let get = |number: u8| {
        let found = fields.iter().rev().find_map(|field| match field {
            Bytes(n, content) if *n == number => Some(*content),
            _ => None,
        });
        found.unwrap_or_default()
    };
    let size = |number: u8| {
        let found = fields.iter().find_map(|field| match field {
            Number(n, value) if *n == number => Some(*value as usize),
            _ => None,
        });
        found.unwrap_or(32)
    };
    let operation = request.header("x-kms-apiname");
    world.last_call = (operation.to_owned(), String::new());
    let name = |number| String::from_utf8_lossy(get(number)).into_owned();
    match operation {
        "AdvanceGenerateDataKey" => generate(world, &name(1), size(2), get(3), true),
        "GenerateDataKey" => generate(world, &name(1), size(3), get(4), false),
        "AdvanceEncrypt" => encrypt(world, &name(1), get(2), get(4), true),
        "Encrypt" => encrypt(world, &name(1), get(2), get(4), false),
        "AdvanceDecrypt" => advance_decrypt(world, get(1), get(4)),
        "Decrypt" => decrypt(world, &name(2), get(1), get(4), get(5)),
        _ => Err(Refusal(400, "InvalidApiName")),
    }
}

fn usable<'a>(world: &'a World, name: &str, advance: bool) -> Result<(String, &'a Key), Refusal> {
    let id = world.key_id(name)?;
    let key = world.usable(&id)?;
    if advance && key.kind != Kind::Software {
        return Err(Refusal(400, "UnsupportedOperation"));
    }
    Ok((id, key))
}

/// IV, wrapped key and version: the Advance operations use the current version
/// and make a self-contained blob, the others the first version.
fn seal(key: &Key, plaintext: &[u8], aad: &[u8], advance: bool) -> ([u8; 12], Vec<u8>, String) {
    let version = if advance {
        key.primary()
    } else {
        &key.versions[0]
    };
    let (iv, sealed) = version.seal(plaintext, aad);
    let blob = match advance {
        true => [b"$\x00\x02", version.id.as_bytes(), &iv, &sealed].concat(),
        false => sealed,
    };
    (iv, blob, version.id.clone())
}

fn generate(
    world: &World,
    name: &str,
    size: usize,
    aad: &[u8],
    advance: bool,
) -> Result<Vec<u8>, Refusal> {
    let (id, key) = usable(world, name, advance)?;
    if !(1..=1024).contains(&size) {
        return Err(Refusal(400, "InvalidParam"));
    }
    let mut bytes = vec![0; size];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    let (iv, blob, version) = seal(key, &bytes, aad, advance);
    let request = request_id();
    let mut fields = vec![
        Bytes(1, id.as_bytes()),
        Bytes(2, &iv),
        Bytes(3, &bytes),
        Bytes(4, &blob),
        Bytes(5, request.as_bytes()),
        Bytes(6, ALGORITHM.as_bytes()),
    ];
    if advance {
        fields.push(Bytes(7, version.as_bytes()));
    }
    Ok(encode(&fields))
}

fn encrypt(
    world: &World,
    name: &str,
    plaintext: &[u8],
    aad: &[u8],
    advance: bool,
) -> Result<Vec<u8>, Refusal> {
    let (id, key) = usable(world, name, advance)?;
    let (iv, blob, version) = seal(key, plaintext, aad, advance);
    let request = request_id();
    let mut fields = vec![
        Bytes(1, id.as_bytes()),
        Bytes(2, &blob),
        Bytes(3, &iv),
        Bytes(4, request.as_bytes()),
        Bytes(5, ALGORITHM.as_bytes()),
    ];
    if advance {
        fields.push(Bytes(7, version.as_bytes()));
    }
    Ok(encode(&fields))
}

fn opened(id: &str, plaintext: &[u8], version: &str) -> Vec<u8> {
    let request = request_id();
    encode(&[
        Bytes(1, id.as_bytes()),
        Bytes(2, plaintext),
        Bytes(3, request.as_bytes()),
        Bytes(4, ALGORITHM.as_bytes()),
        Bytes(6, version.as_bytes()),
    ])
}

fn advance_decrypt(world: &World, blob: &[u8], aad: &[u8]) -> Result<Vec<u8>, Refusal> {
    let invalid = Refusal(400, "InvalidParameter");
    let rest = blob.strip_prefix(b"$\x00\x02").ok_or(invalid)?;
    if rest.len() < 36 + 12 + 16 {
        return Err(invalid);
    }
    let (version, rest) = rest.split_at(36);
    let (iv, sealed) = rest.split_at(12);
    let found = world.find_version(version);
    let (id, index) = found.ok_or(Refusal(404, "Forbidden.KeyVersionNotFound"))?;
    let (id, key) = usable(world, id, true)?;
    let version = &key.versions[index];
    let plaintext = version.open(iv, sealed, aad).ok_or(invalid)?;
    Ok(opened(&id, &plaintext, &version.id))
}

fn decrypt(
    world: &World,
    name: &str,
    sealed: &[u8],
    aad: &[u8],
    iv: &[u8],
) -> Result<Vec<u8>, Refusal> {
    let (id, key) = usable(world, name, false)?;
    let plaintext = key.versions[0].open(iv, sealed, aad);
    let plaintext = plaintext.ok_or(Refusal(400, "InvalidParameter"))?;
    Ok(opened(&id, &plaintext, ""))
}

fn encode(fields: &[Field<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            Number(number, value) => {
                out.push(number * 8);
                varint(&mut out, *value as usize);
            }
            Bytes(number, content) => {
                out.push(number * 8 + 2);
                varint(&mut out, content.len());
                out.extend_from_slice(content);
            }
        }
    }
    out
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value > 127 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}

fn decode(mut input: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while let Some((&tag, rest)) = input.split_first() {
        let (mut value, mut scale, mut used) = (0usize, 1usize, 0);
        loop {
            let byte = usize::from(*rest.get(used)?);
            value += byte % 128 * scale;
            (scale, used) = (scale.checked_mul(128)?, used + 1);
            if byte < 128 {
                break;
            }
        }
        input = &rest[used..];
        match tag % 8 {
            0 => fields.push(Number(tag / 8, value.try_into().ok()?)),
            2 => {
                let (content, rest) = input.split_at_checked(value)?;
                fields.push(Bytes(tag / 8, content));
                input = rest;
            }
            _ => return None,
        }
    }
    Some(fields)
}
