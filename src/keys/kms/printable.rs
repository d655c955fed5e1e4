//! Text of services in our own messages.

const LONGEST: usize = 200;

/// Text that comes from outside and goes into logs and onto terminals: on one
/// line, without control characters, and not too long.
pub(super) fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().take(LONGEST).map(clean).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_short_line() {
        assert_eq!(printable(" a\u{1b}[31m\nb "), "a [31m b");
        assert_eq!(printable(&"x".repeat(1000)).len(), LONGEST);
    }
}
