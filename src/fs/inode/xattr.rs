//! Extended attributes: what QEMU knows of a property beyond its value.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fs::error::Doing;
use crate::fs::{Error, Ino, ROOT, Result, Tree, Wait};
use crate::limits::DESCRIPTION_BYTES;
use crate::qom::{Description, Kind, Path, Property, Request};

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

impl Tree {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA when there is none, or why QEMU does not tell.
    pub fn extended_attribute(&self, ino: Ino, name: &str, wait: Wait) -> Result<Vec<u8>> {
        if self.inodes.lock().temporary_target(ino).is_some() {
            return Err(libc::ENODATA.into());
        }
        let kind = self.kind(ino)?;
        let value = match (kind, name) {
            (Kind::Link, "qom.type") | (Kind::Value | Kind::Child, "user.qom.type") => {
                Some(self.declared(ino, wait)?)
            }
            (Kind::Link, "qom.error") | (Kind::Value | Kind::Child, "user.qom.error") => {
                self.inodes.lock().errors.get(ino).map(str::to_owned)
            }
            (Kind::Value | Kind::Child, "user.qom.description") => self.description(ino, wait)?.description,
            (Kind::Value | Kind::Child, "user.qom.default") => self.description(ino, wait)?.default,
            _ => None,
        };
        value.map(String::into_bytes).ok_or_else(|| libc::ENODATA.into())
    }

    /// The names of the extended attributes that there are, each ended by a NUL.
    ///
    /// # Errors
    /// Why QEMU does not tell.
    pub fn extended_attributes(&self, ino: Ino, wait: Wait) -> Result<Vec<u8>> {
        let names: &[&str] = match self.kind(ino)? {
            // Nothing keeps them outside of the mount, so what copies all attributes would fail.
            Kind::Link => &[],
            _ => &[
                "user.qom.type",
                "user.qom.description",
                "user.qom.default",
                "user.qom.error",
            ],
        };
        let mut list = Vec::new();
        for name in names {
            match self.extended_attribute(ino, name, wait) {
                Ok(_) => list.extend(name.bytes().chain([0])),
                Err(e) if e.errno == libc::ENODATA => {}
                Err(e) => return Err(e),
            }
        }
        Ok(list)
    }

    fn kind(&self, ino: Ino) -> Result<Kind> {
        let found = self.inodes.lock().get(ino);
        Ok(found.ok_or(libc::ENOENT)?.1.kind)
    }

    /// The declared type of a property; for the root, which nobody declares, its own.
    fn declared(&self, ino: Ino, wait: Wait) -> Result<String> {
        let found = self.inodes.lock().get(ino);
        let (_, entry) = found.ok_or(libc::ENOENT)?;
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

    /// What the type of the object around a property says of it.
    fn description(&self, ino: Ino, wait: Wait) -> Result<Description> {
        if ino == ROOT {
            return Ok(Description::default());
        }
        let found = self.inodes.lock().get(ino);
        let (parent, entry) = found.ok_or(libc::ENOENT)?;
        let declared = self.declared(parent, wait)?;
        let object_type = if parent == ROOT {
            declared
        } else {
            let property = Property {
                name: "".into(),
                declared: declared.into(),
            };
            property.child_type().unwrap_or_default().to_owned()
        };
        Ok(self
            .of_type(&object_type, wait)?
            .get(&*entry.name)
            .cloned()
            .unwrap_or_default())
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
