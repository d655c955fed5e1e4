//! `pkcs11:` against SoftHSM2: a token a test, in one directory of this process.

#[path = "../conformance/mod.rs"]
mod conformance;
mod softhsm;
mod tokens;

use softhsm::Token;

mod gcm {
    use super::*;
    conformance!(Token::new("aes-gcm"));
}

mod key_wrap {
    use super::*;
    conformance!(Token::new("aes-key-wrap"));
}
