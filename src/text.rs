//! What is safe to print of the words of others.

/// A peer's text, safe to print, at most 1,000 characters of it: for logs and terminals.
pub fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 1000;
    match text.char_indices().nth(MAX_CHARS) {
        Some((cut, _)) => format!("{}… ({} bytes in all)", escaped(&text[..cut]), text.len()),
        None => escaped(text),
    }
}

/// A text without what acts on a terminal: control characters, line and paragraph separators
/// and bidirectional overrides are written as Rust writes them (`\n`, `\u{1b}`).
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let acts = matches!(c, '\u{061c}' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || acts {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text() {
        assert_eq!(printable("a\n\u{1b}[31mb\u{202e}"), "a\\n\\u{1b}[31mb\\u{202e}");
        assert!(printable(&"x".repeat(5000)).len() < 1100);
    }
}
