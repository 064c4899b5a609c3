//! What an object's listing tells of a property.

use std::sync::Arc;

use super::error::Error;

/// What a property is in the tree, judged by its declared type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `child<T>`: another object.
    Child,
    /// `link<T>`: a reference to an object, perhaps unset.
    Link,
    /// Anything else: a value.
    Value,
}

/// A property as `qom-list` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    pub name: Arc<str>,
    /// The declared type. For a value it is a hint at most: `int` may hold a list.
    pub declared: Arc<str>,
}

/// A property and what `qom-list-get` found in it: its value as text, without a newline.
/// `None` where the getter failed, which only `qom-get` explains.
#[derive(Debug)]
pub struct Valued {
    pub property: Property,
    pub text: Option<Result<String, Error>>,
}

/// What `qom-list-properties` adds, for a property of a type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Description {
    pub description: Option<String>,
    /// The default value, as text.
    pub default: Option<String>,
}

impl Property {
    pub fn kind(&self) -> Kind {
        let inner = |prefix| {
            self.declared
                .strip_prefix(prefix)
                .is_some_and(|rest: &str| rest.ends_with('>'))
        };
        if inner("child<") {
            Kind::Child
        } else if inner("link<") {
            Kind::Link
        } else {
            Kind::Value
        }
    }
}

/// The type of the object that a property declared as `child<T>` holds: T.
pub fn child_type(declared: &str) -> Option<&str> {
    declared.strip_prefix("child<")?.strip_suffix('>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (declared, kind) in [
            ("child<container>", Kind::Child),
            ("link<bus>", Kind::Link),
            ("string", Kind::Value),
            ("", Kind::Value),
            ("child", Kind::Value),
            ("child<x", Kind::Value),
            ("int", Kind::Value),
        ] {
            let p = Property {
                name: "x".into(),
                declared: declared.into(),
            };
            assert_eq!(p.kind(), kind, "{declared}");
            assert_eq!(child_type(&p.declared).is_some(), kind == Kind::Child);
        }
    }
}
