//! Access tokens that a test server gave out.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tokens, for whom they are, and until when.
#[derive(Default)]
pub struct Tokens {
    issued: HashMap<String, Token>,
    /// How many there have been.
    pub count: usize,
}

struct Token {
    audience: String,
    end: u64,
}

impl Tokens {
    /// Another token.
    pub fn issue(&mut self, audience: &str, seconds: u64) -> String {
        self.count += 1;
        let text = format!("test-token-{}-{}", self.count, hex(8));
        let token = Token {
            audience: audience.to_owned(),
            end: now() + seconds,
        };
        self.issued.insert(text.clone(), token);
        text
    }

    /// Whether an `Authorization` header has a token of this audience that has
    /// not ended.
    pub fn accept(&self, header: &str, audience: &str) -> bool {
        let token = header.strip_prefix("Bearer ");
        let token = token.and_then(|text| self.issued.get(text));
        token.is_some_and(|token| token.audience == audience && token.end > now())
    }

    /// Ends all of them.
    pub fn end(&mut self) {
        self.issued.clear();
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs()
}

/// That many random bytes, in hexadecimal.
pub fn hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut random).unwrap();
    data_encoding::HEXLOWER.encode(&random)
}

/// The fields of a form.
pub fn form(body: &[u8]) -> HashMap<String, String> {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (unescape(name), unescape(value)))
        .collect()
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = std::str::from_utf8(&more[..2]).unwrap();
                rest = &more[2..];
                u8::from_str_radix(digits, 16).unwrap()
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
