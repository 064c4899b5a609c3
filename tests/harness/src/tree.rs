//! A scripted server over a tree in memory, which words its answers as QEMU does.

mod answers;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

pub use answers::json_type;
use answers::{Hook, Inner, Object};

use crate::mount::Mount;
use crate::script::{Action, GREETING, GREETING_NEW, Scripted};

/// A tree of objects, to be served by a [`Scripted`]. Clones share it, so a test can change it while it is served.
#[derive(Clone, Default)]
pub struct ScriptedTree(Arc<Mutex<Inner>>);

impl ScriptedTree {
    /// A tree that has only its root.
    pub fn new() -> ScriptedTree {
        ScriptedTree::default().object_of("/", "container")
    }

    /// Adds an object of type `container`, and the `child<...>` property of its parent.
    #[track_caller]
    pub fn object(&self, path: &str) -> ScriptedTree {
        self.object_of(path, "container")
    }

    /// Adds an object of a type. Like all of QEMU's, it has a property `type`.
    #[track_caller]
    pub fn object_of(&self, path: &str, kind: &str) -> ScriptedTree {
        let mut inner = self.0.lock();
        let object = Object {
            kind: kind.to_owned(),
            props: Vec::new(),
            index: HashMap::new(),
        };
        inner.objects.insert(path.to_owned(), object);
        inner.put(path, "type", "string", Some(json!(kind).to_string()), false);
        if path != "/" {
            let (parent, name) = path
                .rsplit_once('/')
                .unwrap_or_else(|| panic!("{path} is not absolute"));
            let parent = if parent.is_empty() { "/" } else { parent };
            inner.put(
                parent,
                name,
                &format!("child<{kind}>"),
                Some(json!(path).to_string()),
                false,
            );
        }
        drop(inner);
        self.clone()
    }

    /// Adds or replaces a property.
    #[track_caller]
    pub fn prop(&self, path: &str, name: &str, kind: &str, value: Value) -> ScriptedTree {
        self.raw_prop(path, name, kind, &value.to_string())
    }

    /// The same with a value as it is to be sent, which need not be JSON.
    #[track_caller]
    pub fn raw_prop(&self, path: &str, name: &str, kind: &str, raw_json: &str) -> ScriptedTree {
        self.0
            .lock()
            .put(path, name, kind, Some(raw_json.to_owned()), true);
        self.clone()
    }

    /// Adds or replaces a property that can only be read.
    #[track_caller]
    pub fn constant(&self, path: &str, name: &str, kind: &str, value: Value) -> ScriptedTree {
        self.0
            .lock()
            .put(path, name, kind, Some(value.to_string()), false);
        self.clone()
    }

    /// Adds or replaces a property that can only be written.
    #[track_caller]
    pub fn unreadable(&self, path: &str, name: &str, kind: &str) -> ScriptedTree {
        self.0.lock().put(path, name, kind, None, true);
        self.clone()
    }

    /// Removes an object and everything below it, and its parent's property.
    pub fn remove(&self, path: &str) -> ScriptedTree {
        let below = format!("{path}/");
        let mut inner = self.0.lock();
        inner
            .objects
            .retain(|other, _| other != path && !other.starts_with(&below));
        drop(inner);
        let (parent, name) = path.rsplit_once('/').unwrap_or_default();
        self.remove_prop(if parent.is_empty() { "/" } else { parent }, name)
    }

    /// Removes a property.
    pub fn remove_prop(&self, path: &str, name: &str) -> ScriptedTree {
        if let Some(object) = self.0.lock().objects.get_mut(path) {
            object.props.retain(|prop| prop.name != name);
            let names = object.props.iter().map(|prop| prop.name.clone());
            object.index = names.zip(0..).collect();
        }
        self.clone()
    }

    /// What `qom-list-properties` tells of a type, one element for each property (`name`, `type`, `description`, ...).
    pub fn describe(&self, kind: &str, properties: Vec<Value>) -> ScriptedTree {
        self.0.lock().types.insert(kind.to_owned(), properties);
        self.clone()
    }

    /// Whether `qom-list-get` exists, and the greeting of servers started from now on tells of it; at first it does
    /// not, as before QEMU 10.1.
    pub fn with_list_get(&self, exists: bool) -> ScriptedTree {
        self.0.lock().list_get = exists;
        self.clone()
    }

    /// Overrides the answer to a command for a path (or, for `qom-list-properties`, a type) and a property, which is
    /// `""` for commands without one; for `qom-list-get` the path is one of those asked for. The latest hook wins.
    pub fn hook(&self, command: &str, path: &str, prop: &str, action: Action) -> ScriptedTree {
        self.add_hook(command, path, prop, action, false)
    }

    /// Overrides one answer.
    pub fn hook_once(&self, command: &str, path: &str, prop: &str, action: Action) -> ScriptedTree {
        self.add_hook(command, path, prop, action, true)
    }

    /// Removes all hooks.
    pub fn clear_hooks(&self) -> ScriptedTree {
        self.0.lock().hooks.clear();
        self.clone()
    }

    /// The present value of a property, in JSON.
    pub fn value(&self, path: &str, name: &str) -> Option<String> {
        let inner = self.0.lock();
        let object = inner.objects.get(path)?;
        object.props[*object.index.get(name)?].value.clone()
    }

    /// The handler for [`Scripted::start`].
    pub fn handler(&self) -> impl FnMut(&str, &Value) -> Action + Send + 'static {
        let tree = self.clone();
        move |command, args| tree.0.lock().answer(command, args)
    }

    /// What a QEMU says first that has `qom-list-get`, or has it not, as the tree does now.
    pub fn greeting(&self) -> &'static str {
        if self.0.lock().list_get {
            GREETING_NEW
        } else {
            GREETING
        }
    }

    /// Serves the tree, as a QEMU that has `qom-list-get` or not.
    #[track_caller]
    pub fn serve(&self) -> Scripted {
        Scripted::start_as(self.greeting(), self.handler())
    }

    /// The same, mounted with further options.
    #[track_caller]
    pub fn mounted(&self, options: &[&str]) -> (Scripted, Mount) {
        let server = self.serve();
        let mount = Mount::start(server.socket(), options);
        (server, mount)
    }

    fn add_hook(&self, command: &str, path: &str, prop: &str, action: Action, once: bool) -> ScriptedTree {
        let (command, path, prop) = (command.to_owned(), path.to_owned(), prop.to_owned());
        self.0.lock().hooks.push(Hook {
            command,
            path,
            prop,
            action,
            once,
        });
        self.clone()
    }
}
