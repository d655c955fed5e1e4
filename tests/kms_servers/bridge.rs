//! kmsfs's key providers for tests in other languages.
//!
//! Reads one JSON object a line and answers each with another, so that a
//! service's own client libraries can be asked to open what kmsfs wrapped and
//! the reverse. It prints data keys; nothing but a test may run it.
//!
//! ```text
//! {"do":"generate","uri":…,"bytes":32,"file":HEX,"volume":HEX}  → {"key":HEX,"wrapped":{…}}
//! {"do":"wrap","uri":…,"key":HEX,"file":HEX,"volume":HEX}       → {"wrapped":{…}}
//! {"do":"unwrap","uri":…,"wrapped":{…},"file":HEX,"volume":HEX} → {"key":HEX}
//! {"do":"aad","file":HEX,"volume":HEX}                          → {"aad":HEX}
//! ```
//!
//! What goes wrong is answered with `{"error":KIND,"detail":…}`.

use std::io::BufRead;

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use kmsfs::crypto::DataKey;
use kmsfs::keys::{KeyContext, KeyError, PassphraseSource, WrappedKey, open_provider};
use kmsfs::types::{FileId, KeyLen, VolumeId};
use serde_json::{Value, json};

fn main() {
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let answer = answer(&request).unwrap_or_else(|error| {
            let debug = format!("{error:?}");
            let kind = debug.split([' ', '{']).next().unwrap_or_default();
            json!({ "error": kind, "detail": error.to_string() })
        });
        println!("{answer}");
    }
}

fn answer(request: &Value) -> Result<Value, KeyError> {
    let context = KeyContext {
        volume: VolumeId(bytes(&request["volume"]).try_into().unwrap()),
        file: FileId(bytes(&request["file"]).try_into().unwrap()),
    };
    if request["do"] == "aad" {
        return Ok(json!({ "aad": HEX.encode(&context.aad()) }));
    }
    let uri = request["uri"].as_str().unwrap();
    let provider = open_provider(uri, &PassphraseSource::Unattended)?;
    match request["do"].as_str().unwrap() {
        "generate" => {
            let size = request["bytes"].as_u64().unwrap() as usize;
            let (key, wrapped) = provider.generate(&context, KeyLen::from_bytes(size).unwrap())?;
            Ok(json!({ "key": HEX.encode(key.expose()), "wrapped": to_json(&wrapped) }))
        }
        "wrap" => {
            let key = DataKey::from_bytes(&bytes(&request["key"])).unwrap();
            let wrapped = provider.wrap(&context, &key)?;
            Ok(json!({ "wrapped": to_json(&wrapped) }))
        }
        "unwrap" => {
            let key = provider.unwrap(&context, &from_json(&request["wrapped"]))?;
            Ok(json!({ "key": HEX.encode(key.expose()) }))
        }
        other => panic!("{other}"),
    }
}

fn to_json(wrapped: &WrappedKey) -> Value {
    json!({
        "key_uri": wrapped.key_uri,
        "key_version": wrapped.key_version,
        "algorithm": wrapped.algorithm,
        "iv": HEX.encode(&wrapped.iv),
        "ciphertext": HEX.encode(&wrapped.ciphertext),
    })
}

fn from_json(value: &Value) -> WrappedKey {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    WrappedKey {
        key_uri: text("key_uri"),
        key_version: text("key_version"),
        algorithm: text("algorithm"),
        iv: bytes(&value["iv"]),
        ciphertext: bytes(&value["ciphertext"]),
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    HEX.decode(value.as_str().unwrap_or_default().as_bytes())
        .unwrap()
}
