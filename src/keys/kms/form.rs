//! The bodies of HTML forms, as token services take them.

use zeroize::Zeroizing;

use crate::keys::kms::uri::percent_encode_to;

/// A form's body. Nothing of it is copied to where it is not wiped.
pub(super) fn encode_form(form: &[(&'static str, Zeroizing<String>)]) -> Zeroizing<Vec<u8>> {
    let longest = form.iter().map(|(name, v)| 3 * (name.len() + v.len()) + 2);
    let mut body = String::with_capacity(longest.sum());
    for (name, value) in form {
        if !body.is_empty() {
            body.push('&');
        }
        percent_encode_to(&mut body, name, b"");
        body.push('=');
        percent_encode_to(&mut body, value, b"");
    }
    Zeroizing::new(body.into_bytes())
}
