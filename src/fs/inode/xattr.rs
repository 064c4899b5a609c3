//! Extended attributes: what QEMU knows of a property beyond its value.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::dir::listing::Entry;
use crate::fs::error::Doing;
use crate::fs::{Error, Ino, ROOT, Result, Tree, Wait};
use crate::limits::DESCRIPTION_BYTES;
use crate::qom::{Description, Kind, Path, Request, child_type};

type OfType = Arc<HashMap<String, Description>>;

/// Descriptions by type name, each asked for once.
#[derive(Default)]
pub struct Descriptions {
    by_type: HashMap<String, OfType>,
    /// What they take, in bytes.
    bytes: usize,
    /// The type of the root object, which no parent declares.
    root: Option<String>,
}

/// Those that a file or directory may have; a link has `qom.type` and `qom.error`, which are not listed: nothing
/// keeps them outside of the mount, so what copies all attributes would fail.
const NAMES: [&str; 4] = [
    "user.qom.type",
    "user.qom.description",
    "user.qom.default",
    "user.qom.error",
];

impl Tree {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA when there is none, or why QEMU does not tell.
    pub fn extended_attribute(&self, ino: Ino, name: &str, wait: Wait) -> Result<Vec<u8>> {
        let inodes = self.inodes.lock();
        if inodes.temporary_target(ino).is_some() {
            return Err(libc::ENODATA.into());
        }
        let (parent, entry) = inodes.get(ino).ok_or(libc::ENOENT)?;
        let error = inodes.errors.get(ino).map(str::to_owned);
        drop(inodes);
        let is_link = entry.kind == Kind::Link;
        // The kernel keeps `user.*` off links.
        let name = if is_link {
            Some(name)
        } else {
            name.strip_prefix("user.")
        };
        let value = match name {
            Some("qom.type") => Some(self.declared(ino, &entry, wait)?),
            Some("qom.error") => error,
            Some("qom.description") if !is_link => self.description(parent, &entry, wait)?.description,
            Some("qom.default") if !is_link => self.description(parent, &entry, wait)?.default,
            _ => None,
        };
        value.map(String::into_bytes).ok_or_else(|| libc::ENODATA.into())
    }

    /// The names of the extended attributes that there are, each ended by a NUL.
    ///
    /// # Errors
    /// Why QEMU does not tell.
    pub fn extended_attributes(&self, ino: Ino, wait: Wait) -> Result<Vec<u8>> {
        let mut list = Vec::new();
        let (_, entry) = self.inodes.lock().get(ino).ok_or(libc::ENOENT)?;
        for name in NAMES.iter().filter(|_| entry.kind != Kind::Link) {
            match self.extended_attribute(ino, name, wait) {
                Ok(_) => list.extend(name.bytes().chain([0])),
                Err(e) if e.errno == libc::ENODATA => {}
                Err(e) => return Err(e),
            }
        }
        Ok(list)
    }

    /// The declared type of a property; for the root, which nobody declares, its own.
    fn declared(&self, ino: Ino, entry: &Entry, wait: Wait) -> Result<String> {
        if ino != ROOT {
            return Ok(entry.declared.to_string());
        }
        if let Some(known) = &self.descriptions.lock().root {
            return Ok(known.clone());
        }
        wait.allowed()?;
        let name = self
            .qom
            .request(Request::get(&Path::root(), "type"))
            .map_err(|e| Error::from_qom(&e, Doing::Read))?;
        Ok(self.descriptions.lock().root.insert(name).clone())
    }

    /// What the type of the object around a property says of it. Nothing is around the root.
    fn description(&self, parent: Ino, entry: &Entry, wait: Wait) -> Result<Description> {
        if entry.name.is_empty() {
            return Ok(Description::default());
        }
        let (_, object) = self.inodes.lock().get(parent).ok_or(libc::ENOENT)?;
        let declared = self.declared(parent, &object, wait)?;
        let object_type = child_type(&declared).unwrap_or(&declared);
        let described = self.of_type(object_type, wait)?;
        Ok(described.get(&*entry.name).cloned().unwrap_or_default())
    }

    fn of_type(&self, type_name: &str, wait: Wait) -> Result<OfType> {
        if let Some(known) = self.descriptions.lock().by_type.get(type_name) {
            return Ok(known.clone());
        }
        wait.allowed()?;
        let described = match self.qom.request(Request::describe(type_name)) {
            Ok(described) => described,
            // Not every type can tell; that is an answer too.
            Err(e) if e.is_refusal() => HashMap::new(),
            Err(e) => return Err(Error::from_qom(&e, Doing::Read)),
        };
        let described = Arc::new(described);
        let weight = 512 + type_name.len() + described.iter().map(weight).sum::<usize>();
        let mut descriptions = self.descriptions.lock();
        if descriptions.bytes + weight > DESCRIPTION_BYTES {
            descriptions.by_type.clear();
            descriptions.bytes = 0;
        }
        descriptions.bytes += weight;
        descriptions
            .by_type
            .insert(type_name.to_owned(), described.clone());
        Ok(described)
    }
}

/// About what a description takes, in bytes.
fn weight((name, of): (&String, &Description)) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    128 + name.len() + length(&of.description) + length(&of.default)
}
