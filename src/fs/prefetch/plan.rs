//! What to ask QEMU for, by what a process did: decided here only, without clocks and without asking.

use std::sync::Arc;

use crate::fs::prefetch::walk::{Step, Walk};
use crate::qom::{Features, Path};

/// The most objects that are asked for in one request. More would save hardly anything: of the time
/// that QEMU takes over a request, what it takes over the request itself is an eighth then.
pub const MAX_WINDOW: usize = 8;
/// How many values of an object may be unread when the next objects are asked for: enough to
/// keep QEMU busy, few enough for the values to be fresh when it is their turn.
const NEAR_END: usize = 64;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Listing(Path),
    /// Objects with their values.
    Objects(Vec<Path>),
    Value(Path, Arc<str>),
}

impl What {
    pub fn is_listing(&self) -> bool {
        matches!(self, What::Listing(_))
    }

    pub fn lists(&self, object: &Path) -> bool {
        matches!(self, What::Listing(path) if path == object)
    }

    pub fn has_values_of(&self, object: &Path) -> bool {
        matches!(self, What::Objects(paths) if paths.contains(object))
    }

    pub fn is_value(&self, object: &Path, property: &str) -> bool {
        matches!(self, What::Value(path, name) if path == object && **name == *property)
    }

    /// Whether it is about more than one object: then a failure may be another one's.
    pub fn is_shared(&self) -> bool {
        matches!(self, What::Objects(paths) if paths.len() > 1)
    }
}

/// What is needed of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Listing,
    Values,
}

/// What is known of a process and of QEMU when it is decided what to ask for.
pub struct Planner<'a> {
    pub walk: &'a Walk,
    /// How many objects to ask for in one request with their values.
    pub window: usize,
    pub features: Features,
    /// Whether something of an object is at hand or was asked for.
    pub have: &'a dyn Fn(&Path, Need) -> bool,
}

impl Planner<'_> {
    /// The request for a listing that is needed now. If values are read too, it is for those that come next as well.
    pub fn listing(&self, path: &Path) -> What {
        if !self.features.list_get || !self.walk.reads_what_it_lists() {
            return What::Listing(path.clone());
        }
        let next = self.objects_after(0);
        if next.first() == Some(path) {
            return What::Objects(next);
        }
        What::Objects(vec![path.clone()])
    }

    /// The request for a value that is needed now: with the object's other values if these are read too, unless
    /// there is no use in that.
    pub fn value(&self, path: &Path, name: &Arc<str>, useless: bool) -> What {
        match self.walk.step {
            Step::Opened { second: true, .. } if self.features.list_get && !useless => {
                What::Objects(vec![path.clone()])
            }
            _ => What::Value(path.clone(), name.clone()),
        }
    }

    /// The requests for what the process needs next, in this order.
    pub fn ahead(&self) -> Vec<What> {
        let present = self.walk.present();
        let Some((path, values, next)) = present.filter(|_| !self.features.one_at_a_time) else {
            return Vec::new();
        };
        let value = values
            .get(next)
            .map(|entry| What::Value(path.clone(), entry.name.clone()));
        let (is_large, reads) = (values.len() > NEAR_END, self.walk.reading);
        match (self.walk.step, self.features.list_get) {
            (Step::Listed, true) if reads && !is_large => self.batch(self.window / 4),
            (Step::Listed, false) if reads => Vec::from_iter(value),
            // It takes long to give the kernel a large listing.
            (Step::Listed, _) if self.walk.walking && !reads => self.listings(if is_large { 4 } else { 2 }),
            (
                Step::Opened {
                    left: Some(NEAR_END), ..
                },
                true,
            ) if reads => self.batch(0),
            (Step::Opened { left: Some(0), .. }, false) if self.walk.walking || reads => self.listings(1),
            (
                Step::Opened {
                    left: Some(_),
                    second,
                },
                false,
            ) if second || reads => Vec::from_iter(value),
            _ => Vec::new(),
        }
    }

    fn listings(&self, most: usize) -> Vec<What> {
        let next = self.walk.next_objects().take(most);
        let next = next.filter(|path| !(self.have)(path, Need::Listing));
        next.map(What::Listing).collect()
    }

    /// The next objects in one request, once no more than `lead` are left of those asked for before.
    fn batch(&self, lead: usize) -> Vec<What> {
        let mut next = self.walk.next_objects().take(lead + 1);
        if next.all(|path| (self.have)(&path, Need::Values)) {
            return Vec::new();
        }
        vec![What::Objects(self.objects_after(lead))]
    }

    /// As many objects as may be asked for in one request, of those that come next and were not asked for.
    fn objects_after(&self, lead: usize) -> Vec<Path> {
        let next = self.walk.next_objects().take(lead + self.window);
        let next = next.filter(|path| !(self.have)(path, Need::Values));
        next.take(self.window).collect()
    }
}

#[cfg(test)]
mod tests;
