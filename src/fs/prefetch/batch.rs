//! Several objects with their values in one `qom-list-get`.

use std::mem::replace;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::qom::{Charge, Error, PendingReply, Valued};

/// What a reply may weigh, in bytes, for the parts of other objects to be kept until they are
/// wanted. That of eight CPUs weighs two fifths of it.
const MAX_KEPT: usize = 1 << 20;

/// A request for several objects. Whoever needs one of them first waits for the reply; then each
/// object's part is there to be taken.
pub struct Batch {
    sent: Instant,
    /// How many objects were asked for.
    objects: usize,
    reply: Mutex<Reply>,
}

/// The properties of one object, with what is charged for the reply as long as more is made of them.
pub type Part = (Vec<Valued>, Option<Charge>);

enum Reply {
    Asked(PendingReply<Vec<Vec<Valued>>>),
    /// The charge goes to who takes the first part: only one of that size is kept.
    Came(Vec<Option<Vec<Valued>>>, Option<Charge>),
    Failed(Error),
}

impl Batch {
    pub fn new(ask: PendingReply<Vec<Vec<Valued>>>, objects: usize) -> Arc<Batch> {
        Arc::new(Batch {
            sent: ask.sent(),
            objects,
            reply: Mutex::new(Reply::Asked(ask)),
        })
    }

    /// When the request was sent.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// Whether it is about more than one object: then a failure may be another one's.
    pub fn is_shared(&self) -> bool {
        self.objects > 1
    }

    /// Whether the part of an object has come, and taking it waits for nothing.
    pub fn is_ready(&self, index: usize) -> bool {
        self.reply.try_lock().is_some_and(|reply| match &*reply {
            Reply::Asked(ask) => ask.is_ready(),
            Reply::Came(parts, _) => parts.get(index).is_some_and(Option::is_some),
            Reply::Failed(_) => false,
        })
    }

    /// Waits for the reply if it was not waited for yet, and takes the part of one object. `None`
    /// when the reply has no such part, as no QEMU's is, or when it was too much to be kept.
    ///
    /// # Errors
    /// The same for all objects: one bad path fails the whole request.
    pub fn take(&self, index: usize) -> Result<Option<Part>, Error> {
        let mut reply = self.reply.lock();
        *reply = match replace(&mut *reply, Reply::Came(Vec::new(), None)) {
            Reply::Asked(ask) => self.received(ask.wait_charged(), index),
            known => known,
        };
        match &mut *reply {
            Reply::Came(parts, charge) => {
                let part = parts.get_mut(index).and_then(Option::take);
                Ok(part.map(|part| (part, charge.take())))
            }
            Reply::Failed(e) => Err(e.clone()),
            Reply::Asked(_) => Ok(None),
        }
    }

    /// What came, as far as it is kept: the part of the object that it was waited for, and the others.
    fn received(&self, answer: Result<(Vec<Vec<Valued>>, Option<Charge>), Error>, index: usize) -> Reply {
        let (parts, charge) = match answer {
            // Without a part for each, nobody can tell whose they are.
            Ok((parts, _)) if parts.len() != self.objects => (Vec::new(), None),
            Ok(came) => came,
            Err(e) => return Reply::Failed(e),
        };
        let fits = parts.iter().flatten().map(weight).sum::<usize>() <= MAX_KEPT;
        let kept = |(i, part)| (fits || i == index).then_some(part);
        Reply::Came(parts.into_iter().enumerate().map(kept).collect(), charge)
    }
}

/// About what a property with its value takes.
fn weight(valued: &Valued) -> usize {
    let text = match &valued.text {
        Some(Ok(text)) => text.len(),
        _ => 0,
    };
    128 + valued.property.name.len() + valued.property.declared.len() + text
}
