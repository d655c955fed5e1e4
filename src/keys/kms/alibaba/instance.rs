//! The protocol of KMS instances: protobuf, signed with a client key.
//!
//! A software instance has the *Advance* operations, which use the key's
//! current version and put all that unwrapping needs into the wrapped key.
//! Hardware instances lack them; the plain ones always use the key's first
//! version and give an IV to be kept. A wrapped key without an IV is therefore
//! one of the former kind.

use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest;
use data_encoding::HEXUPPER;
use reqwest::Method;
use zeroize::Zeroizing;

use super::client_key::ClientKey;
use super::fault::{Asked, Fault, Remedy};
use super::protobuf::{Message, Writer};
use super::target::Target;
use super::uri::key_id;
use crate::crypto::DataKey;
use crate::keys::audit::request;
use crate::keys::kms::http::{Http, Request, Response};
use crate::keys::kms::retry::{self, Deadline};
use crate::keys::kms::time::{self, ClockOffset};
use crate::keys::{KeyContext, KeyError, WrappedKey};
use crate::types::KeyLen;

const API_VERSION: &str = "dkms-gcs-0.2";
const SIGNATURE_METHOD: &str = "RSA_PKCS1_SHA_256";
const PROTOBUF: &str = "application/x-protobuf";

/// A key reached through its instance's own protocol.
pub(super) struct Instance {
    pub(super) http: Http,
    /// `https://host[:port]`.
    pub(super) origin: String,
    pub(super) client_key: ClientKey,
    pub(super) clock: ClockOffset,
    pub(super) target: Target,
    /// Whether the instance was found to lack the Advance operations.
    pub(super) plain: AtomicBool,
}

impl Instance {
    pub(super) fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let size = len.bytes() as u64;
        let aad = context.aad();
        let advance = Writer::new()
            .text(1, &self.target.key)
            .number(2, size)
            .bytes(3, &aad);
        let plain = Writer::new()
            .text(1, &self.target.key)
            .number(3, size)
            .bytes(4, &aad);
        let (is_advance, answer) = self.either(
            ("AdvanceGenerateDataKey", &advance.finish()),
            ("GenerateDataKey", &plain.finish()),
            Asked::Other,
            self.target.deadline(),
        )?;
        let message = self.parse(&answer)?;
        request::note(message.text(5).unwrap_or_default());
        self.target.check_answer(message.text(1))?;
        let key = self.data_key(message.bytes(3))?;
        if key.len() != len {
            return Err(self
                .target
                .malformed("the data key has another length than was asked for"));
        }
        let fields = Fields {
            iv: message.bytes(2),
            ciphertext: message.bytes(4),
            algorithm: message.text(6).unwrap_or_default(),
            version: message.text(7).unwrap_or_default(),
        };
        Ok((key, self.wrapped(is_advance, &fields)?))
    }

    pub(super) fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.wrap_by(context, key, self.target.deadline())
    }

    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let request = Writer::new()
            .text(1, &self.target.key)
            .bytes(2, key.expose())
            .bytes(4, &context.aad())
            .finish();
        let (is_advance, answer) = self.either(
            ("AdvanceEncrypt", &request),
            ("Encrypt", &request),
            Asked::Wrap,
            deadline,
        )?;
        let message = self.parse(&answer)?;
        self.target.check_answer(message.text(1))?;
        let fields = Fields {
            ciphertext: message.bytes(2),
            iv: message.bytes(3),
            algorithm: message.text(5).unwrap_or_default(),
            version: message.text(7).unwrap_or_default(),
        };
        self.wrapped(is_advance, &fields)
    }

    pub(super) fn unwrap(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
    ) -> Result<DataKey, KeyError> {
        self.unwrap_by(context, wrapped, self.target.deadline())
    }

    fn unwrap_by(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<DataKey, KeyError> {
        let operation = match wrapped.iv.is_empty() {
            true => "AdvanceDecrypt",
            false => "Decrypt",
        };
        let request = Writer::new()
            .bytes(1, &wrapped.ciphertext)
            .text(2, &self.target.key)
            .text(3, &wrapped.algorithm)
            .bytes(4, &context.aad())
            .bytes(5, &wrapped.iv)
            .finish();
        let answer = self.exchange(operation, &request, Asked::Unwrap, deadline, |_| false)?;
        let message = self.parse(&answer)?;
        request::note(message.text(3).unwrap_or_default());
        self.target.check_unwrapped(message.text(1))?;
        self.data_key(message.bytes(2))
    }

    /// There is no operation for it.
    pub(super) fn rewrap(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
    ) -> Result<WrappedKey, KeyError> {
        let deadline = self.target.deadline();
        let key = self.unwrap_by(context, wrapped, deadline)?;
        self.wrap_by(context, &key, deadline)
    }

    /// The id of the key, which may have been named by an alias.
    pub(super) fn resolve(&self) -> Result<String, KeyError> {
        let advance = Writer::new().text(1, &self.target.key).number(2, 32);
        let plain = Writer::new().text(1, &self.target.key).number(3, 32);
        let (_, answer) = self.either(
            ("AdvanceGenerateDataKey", &advance.finish()),
            ("GenerateDataKey", &plain.finish()),
            Asked::Other,
            self.target.deadline(),
        )?;
        let id = self.parse(&answer)?.text(1).and_then(key_id);
        id.ok_or_else(|| self.target.malformed("it names no key"))
    }

    /// Whether the instance uses the key's first version only.
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    /// The Advance operation, or the plain one where the instance lacks it.
    fn either(
        &self,
        (advance, advance_request): (&'static str, &[u8]),
        (plain, plain_request): (&'static str, &[u8]),
        asked: Asked,
        deadline: Deadline,
    ) -> Result<(bool, Response), KeyError> {
        if !self.is_plain() {
            let mut lacking = false;
            let result = self.exchange(advance, advance_request, asked, deadline, |fault| {
                lacking = fault.remedy() == Remedy::Alternative;
                lacking
            });
            if !lacking {
                return result.map(|answer| (true, answer));
            }
        }
        let answer = self.exchange(plain, plain_request, asked, deadline, |_| false)?;
        // Only now, as a key that no operation may use says the same.
        self.plain.store(true, Ordering::Relaxed);
        Ok((false, answer))
    }

    /// As [`super::openapi::OpenApi::exchange`].
    fn exchange(
        &self,
        operation: &'static str,
        body: &[u8],
        asked: Asked,
        deadline: Deadline,
        mut accept: impl FnMut(&Fault) -> bool,
    ) -> Result<Response, KeyError> {
        let mut clock_was_set = false;
        retry::until(deadline, || {
            loop {
                let request = self.signed(operation, body);
                let answer = self.http.send(request, deadline.one_try());
                let answer =
                    answer.map_err(|error| error.about(&self.target.identity, &self.origin))?;
                if answer.status == 200 {
                    return Ok(answer);
                }
                let fault = fault(&answer);
                let cured = !accept(&fault)
                    && fault.remedy() == Remedy::Clock
                    && !std::mem::replace(&mut clock_was_set, true)
                    && fault
                        .server_time
                        .is_some_and(|time| self.clock.correct(time));
                if !cured {
                    return Err(fault.about(&self.target.identity, asked));
                }
            }
        })
    }

    fn signed(&self, operation: &'static str, body: &[u8]) -> Request {
        let date = time::http_date(self.clock.now());
        let hash = HEXUPPER.encode(digest::digest(&digest::SHA256, body).as_ref());
        // In the order of their names, as they are signed. The name of the
        // first is really spelled that way.
        let signed = [
            ("x-kms-acccesskeyid", self.client_key.id.as_str()),
            ("x-kms-apiname", operation),
            ("x-kms-apiversion", API_VERSION),
            ("x-kms-signaturemethod", SIGNATURE_METHOD),
        ];
        let mut to_sign = format!("POST\n{hash}\n{PROTOBUF}\n{date}\n");
        for (name, value) in signed {
            to_sign.push_str(&format!("{name}:{value}\n"));
        }
        to_sign.push('/');
        let signature = self.client_key.sign(to_sign.as_bytes());
        let mut request = Request::new(Method::POST, format!("{}/", self.origin))
            .header("accept", PROTOBUF)
            .header("content-type", PROTOBUF)
            .header("content-sha256", hash)
            .header("date", date)
            .header("authorization", format!("Bearer {signature}"));
        for (name, value) in signed {
            request = request.header(name, value);
        }
        request.body = Zeroizing::new(body.to_vec());
        request
    }

    fn parse<'a>(&self, answer: &'a Response) -> Result<Message<'a>, KeyError> {
        let message = Message::parse(&answer.body);
        message.ok_or_else(|| {
            self.target
                .malformed("it is not the message that was expected")
        })
    }

    fn data_key(&self, bytes: &[u8]) -> Result<DataKey, KeyError> {
        DataKey::from_bytes(bytes).ok_or_else(|| {
            self.target
                .malformed("the data key has a length that no data key has")
        })
    }

    fn wrapped(&self, is_advance: bool, fields: &Fields<'_>) -> Result<WrappedKey, KeyError> {
        if fields.ciphertext.is_empty() || (!is_advance && fields.iv.is_empty()) {
            return Err(self
                .target
                .malformed("the wrapped key or its IV is missing"));
        }
        let kept = |value: &str| match is_advance {
            true => String::new(),
            false => value.to_owned(),
        };
        Ok(WrappedKey {
            key_uri: self.target.identity.clone(),
            key_version: fields.version.to_owned(),
            algorithm: kept(fields.algorithm),
            iv: if is_advance {
                Vec::new()
            } else {
                fields.iv.to_vec()
            },
            ciphertext: fields.ciphertext.to_vec(),
        })
    }
}

/// The fields of an answer that make a wrapped key.
struct Fields<'a> {
    iv: &'a [u8],
    ciphertext: &'a [u8],
    algorithm: &'a str,
    version: &'a str,
}

fn fault(answer: &Response) -> Fault {
    let message = Message::parse(&answer.body);
    let text = |field| {
        let text = message.as_ref().and_then(|message| message.text(field));
        text.unwrap_or_default().to_owned()
    };
    Fault::new(answer, text(2), text(3), text(4))
}
