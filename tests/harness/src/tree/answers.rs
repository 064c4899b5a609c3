//! How the tree in memory answers.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::script::Action;

#[derive(Default)]
pub struct Inner {
    pub objects: BTreeMap<String, Object>,
    pub types: HashMap<String, Vec<Value>>,
    pub list_get: bool,
    pub hooks: Vec<Hook>,
}

pub struct Object {
    pub kind: String,
    pub props: Vec<Prop>,
    pub index: HashMap<String, usize>,
}

pub struct Prop {
    pub name: String,
    pub kind: String,
    pub value: Option<String>, // in JSON; None when it cannot be read
    pub writable: bool,
}

pub struct Hook {
    pub command: String,
    pub path: String,
    pub prop: String,
    pub action: Action,
    pub once: bool,
}

impl Inner {
    #[track_caller]
    pub fn put(&mut self, path: &str, name: &str, kind: &str, value: Option<String>, writable: bool) {
        let object = self
            .objects
            .get_mut(path)
            .unwrap_or_else(|| panic!("no object {path} to have {name}"));
        let prop = Prop {
            name: name.to_owned(),
            kind: kind.to_owned(),
            value,
            writable,
        };
        match object.index.get(name) {
            Some(&index) => object.props[index] = prop,
            None => {
                object.index.insert(name.to_owned(), object.props.len());
                object.props.push(prop);
            }
        }
    }

    pub fn answer(&mut self, command: &str, args: &Value) -> Action {
        let text = |key: &str| args[key].as_str().unwrap_or_default();
        let (path, name) = (text("path"), text("property"));
        let asked = |path: &str| {
            args["paths"]
                .as_array()
                .is_some_and(|paths| paths.iter().any(|one| one == path))
        };
        let hooked = self.hooks.iter().rposition(|hook| {
            let path_fits = hook.path == path || hook.path == text("typename") || asked(&hook.path);
            hook.command == command && path_fits && hook.prop == name
        });
        if let Some(index) = hooked {
            let hook = &self.hooks[index];
            return if hook.once {
                self.hooks.remove(index).action
            } else {
                hook.action.clone()
            };
        }
        let answer = match command {
            "qom-list" => self.list(path, false),
            "qom-get" => self.get(path, name),
            "qom-set" => self.set(path, name, &args["value"]),
            "qom-list-properties" => self.describe(text("typename")),
            "qom-list-get" if self.list_get => {
                let paths = args["paths"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                let objects: Result<Vec<_>, _> = paths
                    .map(|path| Ok(format!(r#"{{"properties": {}}}"#, self.list(path, true)?)))
                    .collect();
                objects.map(|objects| format!("[{}]", objects.join(", ")))
            }
            _ => Err(Action::error(
                "CommandNotFound",
                format!("The command {command} has not been found"),
            )),
        };
        answer.map_or_else(|error| error, Action::ReturnRaw)
    }

    fn object(&self, path: &str) -> Result<&Object, Action> {
        self.objects.get(path).ok_or_else(|| no_device(path))
    }

    fn list(&self, path: &str, values: bool) -> Result<String, Action> {
        let entry = |prop: &Prop| {
            let (name, kind) = (json!(prop.name), json!(prop.kind));
            let value = prop
                .value
                .as_ref()
                .filter(|_| values)
                .map(|value| format!(r#", "value": {value}"#));
            format!(
                r#"{{"name": {name}, "type": {kind}{}}}"#,
                value.unwrap_or_default()
            )
        };
        let entries: Vec<String> = self.object(path)?.props.iter().map(entry).collect();
        Ok(format!("[{}]", entries.join(", ")))
    }

    fn get(&self, path: &str, name: &str) -> Result<String, Action> {
        let object = self.object(path)?;
        let prop = object
            .index
            .get(name)
            .ok_or_else(|| object.refuse(name, "not found"))?;
        object.props[*prop]
            .value
            .clone()
            .ok_or_else(|| object.refuse(name, "is not readable"))
    }

    fn set(&mut self, path: &str, name: &str, value: &Value) -> Result<String, Action> {
        let object = self.object(path)?;
        let index = *object
            .index
            .get(name)
            .ok_or_else(|| object.refuse(name, "not found"))?;
        let prop = &object.props[index];
        if !prop.writable {
            return Err(object.refuse(name, "is not writable"));
        }
        if let Some(expected) = prop.expected().filter(|expected| *expected != json_type(value)) {
            let text = format!("Invalid parameter type for '{name}', expected: {expected}");
            return Err(Action::error("GenericError", text));
        }
        let target = value
            .as_str()
            .filter(|target| prop.kind.starts_with("link<") && !target.is_empty());
        if let Some(target) = target.filter(|target| !self.objects.contains_key(*target)) {
            return Err(no_device(target));
        }
        let object = self.objects.get_mut(path).ok_or_else(|| no_device(path))?;
        object.props[index].value = Some(value.to_string());
        Ok("{}".to_owned())
    }

    fn describe(&self, kind: &str) -> Result<String, Action> {
        let known = self
            .types
            .get(kind)
            .map(|properties| json!(properties).to_string());
        let used = || {
            self.objects
                .values()
                .any(|object| object.kind == kind)
                .then(|| "[]".to_owned())
        };
        let missing = || Action::error("DeviceNotFound", format!("Class '{kind}' not found"));
        known.or_else(used).ok_or_else(missing)
    }
}

impl Object {
    fn refuse(&self, name: &str, what: &str) -> Action {
        Action::error("GenericError", format!("Property '{}.{name}' {what}", self.kind))
    }
}

impl Prop {
    /// The JSON type that it takes: that of its present value, as a declared type does not tell.
    fn expected(&self) -> Option<&'static str> {
        let value: Value = serde_json::from_str(self.value.as_ref()?).ok()?;
        Some(json_type(&value)).filter(|name| ["boolean", "integer", "string"].contains(name))
    }
}

/// How QEMU names the JSON type of a value, in its refusals.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn no_device(path: &str) -> Action {
    Action::error("DeviceNotFound", format!("Device '{path}' not found"))
}
