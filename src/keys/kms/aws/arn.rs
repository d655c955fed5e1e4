//! How keys are named: by id, by alias, or by a whole ARN.

use std::fmt;

/// What begins the id of a multi-Region key.
const MULTI_REGION: &str = "mrk-";

/// A key's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    place: Option<Place>,
    /// The id, or `alias/NAME`.
    name: String,
}

/// Where a key is, as its ARN has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    partition: String,
    region: String,
    account: String,
}

impl Key {
    /// Parses an id, `alias/NAME`, or an ARN of either.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (place, name) = match text.strip_prefix("arn:") {
            Some(rest) => {
                let (place, resource) = Place::parse(rest)?;
                let id = resource.strip_prefix("key/");
                // What is not a key's is an alias's, and has a slash.
                let name = id.filter(|id| !id.contains('/')).or_else(|| {
                    let alias = resource.starts_with("alias/");
                    alias.then_some(resource)
                })?;
                (Some(place), name)
            }
            None => (None, text),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
        let alias = name.strip_prefix("alias/").is_some_and(|n| !n.is_empty());
        let plain = alias || !name.contains(['/', '_']);
        let fits = (1..=256).contains(&name.len());
        (fits && plain && name.chars().all(allowed)).then(|| Self {
            place,
            name: name.to_owned(),
        })
    }

    /// Whether it is named by an alias, which can be pointed elsewhere.
    pub fn is_alias(&self) -> bool {
        self.name.starts_with("alias/")
    }

    /// Whether it says all there is to say about which key it is.
    pub fn is_resolved(&self) -> bool {
        self.place.is_some() && !self.is_alias()
    }

    /// Whether replicas of it in other regions are the same key.
    fn is_multi_region(&self) -> bool {
        self.name.starts_with(MULTI_REGION)
    }

    /// The region, if the name says.
    pub(super) fn region(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.region.as_str())
    }

    /// The key as it is called in `region`; `None` if it is not there.
    pub(super) fn in_region(mut self, region: &str) -> Option<Self> {
        let multi_region = self.is_multi_region();
        if let Some(place) = &mut self.place
            && place.region != region
        {
            if !multi_region {
                return None;
            }
            region.clone_into(&mut place.region);
        }
        Some(self)
    }

    /// Whether both name the same key. Ids are unique, so one without a place is
    /// that of any; the replicas of a multi-Region key share their id and
    /// their key material, within one account.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        if self.is_alias() || other.is_alias() {
            return self == other;
        }
        let same_place = match (&self.place, &other.place) {
            (Some(mine), Some(theirs)) => {
                mine.partition == theirs.partition
                    && mine.account == theirs.account
                    && (mine.region == theirs.region || self.is_multi_region())
            }
            _ => true,
        };
        self.name == other.name && same_place
    }
}

impl Place {
    /// From what follows `arn:`, and the resource that comes after the place.
    fn parse(rest: &str) -> Option<(Self, &str)> {
        let mut parts = rest.splitn(5, ':');
        let (partition, service) = (parts.next()?, parts.next()?);
        let (region, account) = (parts.next()?, parts.next()?);
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let word = |text: &str| !text.is_empty() && text.chars().all(allowed);
        let valid = service == "kms" && [partition, region, account].into_iter().all(word);
        let place = Self {
            partition: partition.to_owned(),
            region: region.to_owned(),
            account: account.to_owned(),
        };
        valid.then_some((place, parts.next()?))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            let (partition, region) = (&place.partition, &place.region);
            write!(f, "arn:{partition}:kms:{region}:{}:", place.account)?;
            if !self.is_alias() {
                f.write_str("key/")?;
            }
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        let key = Key::parse(text).unwrap();
        assert_eq!(key.to_string(), text);
        key
    }

    #[test]
    fn only_a_key_s_arn_is_resolved() {
        assert!(key("arn:aws-cn:kms:cn-north-1:1:key/abc-1").is_resolved());
        assert!(!key("arn:aws:kms:us-east-1:1:alias/a/b_c").is_resolved());
        assert!(!key("abc-1").is_resolved() && !key("alias/a").is_resolved());
        for bad in [
            "",
            "a b",
            "a/b",
            "alias/",
            "alias/é",
            "arn:aws:kms:us-east-1:1:key/",
            "arn:aws:kms:us-east-1:1:key/alias/x",
            "arn:aws:kms:us-east-1:1:grant/x",
            "arn:aws:kms:us-east-1::key/x",
            "arn:aws:s3:us-east-1:1:key/x",
            "arn:aws:kms:us-east-1:key/x",
        ] {
            assert!(Key::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn replicas_are_one_key_and_others_are_not() {
        let here = key("arn:aws:kms:us-east-1:1:key/mrk-1");
        let same = |other: &str| here.is_same_as(&key(other));
        assert!(same("arn:aws:kms:eu-west-1:1:key/mrk-1"));
        assert!(same("mrk-1"));
        assert!(!same("arn:aws:kms:eu-west-1:1:key/mrk-2"));
        assert!(!same("arn:aws:kms:us-east-1:2:key/mrk-1"), "account");
        assert!(!same("arn:aws-cn:kms:us-east-1:1:key/mrk-1"), "partition");
        let plain = key("arn:aws:kms:us-east-1:1:key/1");
        assert!(plain.is_same_as(&key("1")));
        assert!(!plain.is_same_as(&key("arn:aws:kms:eu-west-1:1:key/1")));
        let alias = key("arn:aws:kms:us-east-1:1:alias/a");
        assert!(!alias.is_same_as(&key("arn:aws:kms:eu-west-1:1:alias/a")));
    }

    #[test]
    fn only_multi_region_keys_move() {
        let moved = |text: &str| key(text).in_region("eu-west-1").map(|key| key.to_string());
        assert_eq!(
            moved("arn:aws:kms:us-east-1:1:key/mrk-1").as_deref(),
            Some("arn:aws:kms:eu-west-1:1:key/mrk-1")
        );
        assert_eq!(moved("arn:aws:kms:us-east-1:1:key/1"), None);
        assert_eq!(moved("alias/a").as_deref(), Some("alias/a"));
    }
}
