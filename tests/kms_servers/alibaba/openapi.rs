//! The OpenAPI's operations.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::keys::{Key, Kind, State};
use super::{KEY, Refusal, World, acs3, request_id};
use crate::kms_servers::http::{Reply, Request};

type Parameters = BTreeMap<String, String>;

pub(super) fn refuse(Refusal(status, code): Refusal) -> Reply {
    let body = json!({
        "HttpStatus": status,
        "Code": code,
        "Message": "refused by the test server",
        "RequestId": request_id(),
    });
    Reply {
        status,
        headers: vec![("content-type", "application/json".into())],
        body: body.to_string().into_bytes(),
        ..Reply::default()
    }
}

pub(super) fn handle(world: &mut World, request: &Request, now: u64) -> Reply {
    match answer(world, request, now) {
        Ok(mut body) => {
            body["RequestId"] = request_id().into();
            Reply {
                status: 200,
                headers: vec![("content-type", "application/json".into())],
                body: body.to_string().into_bytes(),
                ..Reply::default()
            }
        }
        Err(refusal) => refuse(refusal),
    }
}

fn answer(world: &mut World, request: &Request, now: u64) -> Result<Value, Refusal> {
    acs3::verify(world, request, now)?;
    let form = match request.header("content-type") {
        kind if kind.starts_with("application/x-www-form-urlencoded") => {
            std::str::from_utf8(&request.body).unwrap_or_default()
        }
        _ => "",
    };
    let mut parameters = Parameters::new();
    for part in [request.query.as_str(), form] {
        for pair in part.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.insert(unescape(name), unescape(value));
        }
    }
    let action = request.header("x-acs-action");
    match (request.header("x-acs-version"), action) {
        ("2016-01-20", _) => {}
        ("2015-04-01", "AssumeRole") => return assume_role(world, &parameters, now),
        _ => return Err(Refusal(404, "InvalidVersion")),
    }
    world.last_call = (action.to_owned(), request.query.clone());
    if world.lacking.contains(action) {
        return Err(Refusal(404, "InvalidAction.NotFound"));
    }
    let result = match action {
        "GenerateDataKey" => generate(world, &parameters),
        "Encrypt" => encrypt(world, &parameters),
        "Decrypt" => decrypt(world, &parameters),
        "ReEncrypt" => re_encrypt(world, &parameters),
        "DescribeKey" => describe(world, &parameters),
        _ => Err(Refusal(404, "InvalidAction.NotFound")),
    };
    match result {
        Ok(_) if parameters.get("DryRun").is_some_and(|v| v == "true") => {
            Err(Refusal(400, "DryRunOperationError"))
        }
        result => result,
    }
}

/// STS's only operation here; any access key may assume any role.
fn assume_role(world: &mut World, parameters: &Parameters, now: u64) -> Result<Value, Refusal> {
    for name in ["RoleArn", "RoleSessionName"] {
        needed(parameters, name)?;
    }
    let seconds = needed(parameters, "DurationSeconds")?.parse().unwrap_or(0);
    if !(900..=43_200).contains(&seconds) {
        return Err(Refusal(400, "InvalidParameter.DurationSeconds"));
    }
    Ok(json!({ "Credentials": world.issue(now) }))
}

fn needed<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, Refusal> {
    let value = parameters.get(name).filter(|value| !value.is_empty());
    value
        .map(String::as_str)
        .ok_or(Refusal(400, "MissingParameter"))
}

/// The associated data of a context: its pairs in order, hashed.
fn context(parameters: &Parameters, name: &str) -> Result<Vec<u8>, Refusal> {
    let Some(text) = parameters.get(name) else {
        return Ok(Vec::new());
    };
    if text.len() > 8192 {
        return Err(Refusal(400, "InvalidParameter"));
    }
    let pairs: BTreeMap<String, String> =
        serde_json::from_str(text).map_err(|_| Refusal(400, "InvalidParameter"))?;
    let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
    Ok(acs3::hash(pairs.join("&").as_bytes()).into_bytes())
}

fn seal(key: &Key, id: &str, plaintext: &str, aad: &[u8]) -> Value {
    let version = key.primary();
    let (iv, sealed) = version.seal(plaintext.as_bytes(), aad);
    let blob = [version.id.as_bytes(), &iv, &sealed].concat();
    json!({
        "KeyId": id,
        "KeyVersionId": version.id,
        "CiphertextBlob": BASE64.encode(&blob),
    })
}

fn generate(world: &World, parameters: &Parameters) -> Result<Value, Refusal> {
    let id = world.key_id(needed(parameters, "KeyId")?)?;
    let key = world.usable(&id)?;
    let size = match (parameters.get("NumberOfBytes"), parameters.get("KeySpec")) {
        (Some(number), _) => number.parse().unwrap_or(0),
        (None, Some(spec)) if spec == "AES_128" => 16,
        _ => 32,
    };
    if !(1..=1024).contains(&size) {
        return Err(Refusal(400, "InvalidParameter"));
    }
    let mut bytes = vec![0; size];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    let plaintext = BASE64.encode(&bytes);
    let mut answer = seal(
        key,
        &id,
        &plaintext,
        &context(parameters, "EncryptionContext")?,
    );
    answer["Plaintext"] = plaintext.into();
    world.release(parameters.get("EncryptionContext"), &bytes);
    Ok(answer)
}

fn encrypt(world: &World, parameters: &Parameters) -> Result<Value, Refusal> {
    let id = world.key_id(needed(parameters, "KeyId")?)?;
    let key = world.usable(&id)?;
    let plaintext = needed(parameters, "Plaintext")?;
    if BASE64.decode(plaintext.as_bytes()).is_err() {
        return Err(Refusal(400, "InvalidParameter"));
    }
    Ok(seal(
        key,
        &id,
        plaintext,
        &context(parameters, "EncryptionContext")?,
    ))
}

fn open(world: &World, blob: &str, aad: &[u8]) -> Result<(String, String, String), Refusal> {
    let invalid = Refusal(400, "InvalidParameter");
    let blob = BASE64.decode(blob.as_bytes()).map_err(|_| invalid)?;
    if blob.len() < 36 + 12 + 16 {
        return Err(invalid);
    }
    let (version, rest) = blob.split_at(36);
    let (iv, sealed) = rest.split_at(12);
    let found = world.find_version(version);
    let (id, index) = found.ok_or(Refusal(404, "Forbidden.KeyVersionNotFound"))?;
    let version = &world.usable(id)?.versions[index];
    let plaintext = version.open(iv, sealed, aad).ok_or(invalid)?;
    let plaintext = String::from_utf8(plaintext).map_err(|_| invalid)?;
    Ok((id.to_owned(), version.id.clone(), plaintext))
}

fn decrypt(world: &World, parameters: &Parameters) -> Result<Value, Refusal> {
    let aad = context(parameters, "EncryptionContext")?;
    let (id, version, plaintext) = open(world, needed(parameters, "CiphertextBlob")?, &aad)?;
    let bytes = BASE64.decode(plaintext.as_bytes()).unwrap_or_default();
    world.release(parameters.get("EncryptionContext"), &bytes);
    Ok(json!({ "KeyId": id, "KeyVersionId": version, "Plaintext": plaintext }))
}

fn re_encrypt(world: &World, parameters: &Parameters) -> Result<Value, Refusal> {
    let source = context(parameters, "SourceEncryptionContext")?;
    let (_, _, plaintext) = open(world, needed(parameters, "CiphertextBlob")?, &source)?;
    let id = world.key_id(needed(parameters, "DestinationKeyId")?)?;
    let aad = context(parameters, "DestinationEncryptionContext")?;
    Ok(seal(world.usable(&id)?, &id, &plaintext, &aad))
}

fn describe(world: &World, parameters: &Parameters) -> Result<Value, Refusal> {
    let id = world.key_id(needed(parameters, "KeyId")?)?;
    let key = world
        .keys
        .get(&id)
        .ok_or(Refusal(404, "Forbidden.KeyNotFound"))?;
    if key.denied {
        return Err(Refusal(403, "Forbidden.NoPermission"));
    }
    let state = match key.state {
        State::Enabled => "Enabled",
        State::Disabled => "Disabled",
        State::PendingDeletion => "PendingDeletion",
    };
    let service = key.kind == Kind::Service;
    Ok(json!({ "KeyMetadata": {
        "KeyId": id,
        "KeyState": state,
        "KeySpec": "Aliyun_AES_256",
        "KeyUsage": "ENCRYPT/DECRYPT",
        "ProtectionLevel": if key.kind == Kind::Hardware { "HSM" } else { "SOFTWARE" },
        "PrimaryKeyVersion": key.primary().id,
        "Creator": if service { "Oss" } else { "1234567890" },
        "DKMSInstanceId": if service { "" } else { "kst-test" },
        "Arn": format!("acs:kms:cn-test:1234567890:key/{KEY}"),
    }}))
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)];
                let digits = std::str::from_utf8(&digits).unwrap_or("");
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
