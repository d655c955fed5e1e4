//! Reading credential files.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::keys::KeyError;

const LARGEST: usize = 256 * 1024;

/// A file's text; `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, KeyError> {
    let mut text = Zeroizing::new(String::with_capacity(LARGEST));
    let result = std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST as u64).read_to_string(&mut text));
    match result {
        Ok(_) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(KeyError::Configuration {
            detail: format!("cannot read {}: {error}", path.display()),
            hint: None,
        }),
    }
}

/// The settings of one section.
pub(super) type Section<'a> = HashMap<&'a str, &'a str>;

/// The section `[name]` of an INI file.
pub(super) fn ini_section<'a>(text: &'a str, name: &str) -> Option<Section<'a>> {
    let mut found = None;
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = title.trim() == name;
            if inside {
                found.get_or_insert_with(Section::new);
            }
        } else if let (true, Some(section)) = (inside, &mut found)
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            // What follows '#' is a comment to the SDKs too.
            let value = value.split('#').next().unwrap_or_default();
            section.insert(key.trim(), value.trim());
        }
    }
    found
}
