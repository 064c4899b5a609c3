//! Several objects with their values in one `qom-list-get`.

use std::mem::replace;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::qom::{Ask, Error, Valued};

/// A request for several objects. Whoever needs one of them first waits for the reply; then each
/// object's part is there to be taken.
pub struct Batch {
    sent: Instant,
    /// How many objects were asked for.
    objects: usize,
    reply: Mutex<Reply>,
}

enum Reply {
    Asked(Ask<Vec<Vec<Valued>>>),
    Came(Vec<Option<Vec<Valued>>>),
    Failed(Error),
}

impl Batch {
    pub fn new(ask: Ask<Vec<Vec<Valued>>>, objects: usize) -> Arc<Batch> {
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

    /// Whether taking a part waits for nothing.
    pub fn is_ready(&self) -> bool {
        self.reply.try_lock().is_some_and(|reply| match &*reply {
            Reply::Asked(ask) => ask.is_ready(),
            Reply::Came(_) | Reply::Failed(_) => true,
        })
    }

    /// Waits for the reply if it was not waited for yet, and takes the part of one object. `None`
    /// when the reply has no such part, as no QEMU's is, or when it was taken already.
    ///
    /// # Errors
    /// The same for all objects: one bad path fails the whole request.
    pub fn take(&self, index: usize) -> Result<Option<Vec<Valued>>, Error> {
        let mut reply = self.reply.lock();
        if let Reply::Asked(_) = *reply
            && let Reply::Asked(ask) = replace(&mut *reply, Reply::Came(Vec::new()))
        {
            *reply = match ask.wait() {
                // Without a part for each, nobody can tell whose they are.
                Ok(parts) if parts.len() != self.objects => Reply::Came(Vec::new()),
                Ok(parts) => Reply::Came(parts.into_iter().map(Some).collect()),
                Err(e) => Reply::Failed(e),
            };
        }
        match &mut *reply {
            Reply::Came(parts) => Ok(parts.get_mut(index).and_then(Option::take)),
            Reply::Failed(e) => Err(e.clone()),
            Reply::Asked(_) => Ok(None),
        }
    }
}
