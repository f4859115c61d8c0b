//! What calls in a pickle mean. Nothing is called; a call that is not in the list is opaque.

use super::machine::Machine;
use super::{Id, Opaque, Storage, Value, View};
use crate::archive::dtype::Dtype;
use crate::archive::mapped::shown;

/// Modules that no checkpoint has a reason to call.
const HOSTILE: [&str; 14] = [
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "socket",
    "shutil",
    "runpy",
    "importlib",
    "ctypes",
    "pty",
    "webbrowser",
    "pickle",
    "_pickle",
];

/// Functions of Python itself that no checkpoint has a reason to call.
const HOSTILE_BUILTINS: [&str; 6] = ["eval", "exec", "compile", "open", "__import__", "execfile"];

/// The module and name of a class or function.
fn global(machine: &Machine<'_>, id: Id) -> Result<(String, String), String> {
    let Value::Global(module, name) = machine.value(id) else {
        return Err("it calls a value that is no class or function".to_owned());
    };
    let part = |span: &super::Span| {
        let bytes = machine.bytes.get(span.clone()).unwrap_or_default();
        shown(&String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]))
    };
    Ok((part(module), part(name)))
}

/// The name of what is called, for people; an error for what only an attack calls.
pub(super) fn name(machine: &Machine<'_>, id: Id) -> Result<String, String> {
    let (module, name) = global(machine, id)?;
    let first = module.split('.').next().unwrap_or_default();
    let builtin = matches!(first, "builtins" | "__builtin__" | "__builtins__");
    if HOSTILE.contains(&first) || builtin && HOSTILE_BUILTINS.contains(&name.as_str()) {
        return Err(format!(
            "it would call `{module}.{name}` when it is loaded; this is no model but an attack"
        ));
    }
    Ok(format!("{module}.{name}"))
}

/// The value of a call.
pub(super) fn call(machine: &mut Machine<'_>, callee: Id, arguments: Id) -> Result<Value, String> {
    let full = name(machine, callee)?;
    let Value::Tuple(given) = machine.value(arguments) else {
        return Err(format!("`{full}` is called without a tuple of arguments"));
    };
    // No known call has more arguments.
    let given: Vec<Id> = given.iter().take(16).copied().collect();
    let copied = match given.first().map(|id| machine.value(*id)) {
        Some(Value::List(list) | Value::Tuple(list)) => 8 * list.len(),
        Some(Value::Dict(entries)) => 8 * entries.len(),
        _ => 0,
    };
    machine.spend(512 + copied)?;
    let first = given.first().map(|id| machine.value(*id));
    let name = full.strip_prefix("__builtin__.").unwrap_or(&full);
    let name = name.strip_prefix("builtins.").unwrap_or(name);
    let known = match (name, first) {
        ("collections.OrderedDict" | "collections.Counter" | "dict", Some(Value::List(list))) => {
            Some(Value::Dict(items(machine, list)?))
        }
        (
            "collections.OrderedDict" | "collections.Counter" | "dict",
            Some(Value::Dict(entries)),
        ) => Some(Value::Dict(entries.clone())),
        ("collections.OrderedDict" | "collections.Counter" | "dict", None)
        | ("collections.defaultdict", _) => Some(Value::Dict(Vec::new())),
        ("set" | "frozenset" | "list", Some(Value::List(list) | Value::Tuple(list))) => {
            Some(Value::List(list.clone()))
        }
        ("set" | "frozenset" | "list", None) => Some(Value::List(Vec::new())),
        ("torch.Size" | "tuple", Some(Value::Tuple(list) | Value::List(list))) => {
            Some(Value::Tuple(list.clone()))
        }
        ("torch.Size" | "tuple", None) => Some(Value::Tuple(Vec::new())),
        ("torch.device" | "numpy.dtype", Some(Value::Text(text))) => {
            Some(Value::Text(text.clone()))
        }
        ("_codecs.encode", Some(Value::Text(text))) if text.len() <= 64 => {
            latin(&machine.bytes[text.clone()])
        }
        ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", _) => {
            scalar(machine, &given)
        }
        ("torch._tensor._rebuild_from_type_v2", _) => Some(typed(machine, &given)?),
        _ => None,
    };
    if let Some(value) = known {
        return Ok(value);
    }
    if let Some(tensor) = tensor(machine, &full, &given)? {
        return Ok(tensor);
    }
    Ok(Value::Opaque(Box::new(Opaque { class: callee, held: vec![arguments] })))
}

/// Pairs of a list of pairs.
fn items(machine: &Machine<'_>, list: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let pair = |id: &Id| match machine.value(*id) {
        Value::List(pair) | Value::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
        _ => Err("a dict is made of values that are no pairs".to_owned()),
    };
    list.iter().map(pair).collect()
}

/// Bytes that are written as text, one character each.
fn latin(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).ok()?;
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.map(|bytes| Value::Short(bytes.into()))
}

/// A number of numpy.
fn scalar(machine: &Machine<'_>, given: &[Id]) -> Option<Value> {
    let [kind, value] = given else { return None };
    let Value::Text(kind) = machine.value(*kind) else { return None };
    let bytes = match machine.value(*value) {
        Value::Bytes(span) => &machine.bytes[span.clone()],
        Value::Short(bytes) => bytes,
        _ => return None,
    };
    let kind = std::str::from_utf8(&machine.bytes[kind.clone()]).ok()?;
    Some(match kind {
        "f8" => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "f4" => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        "i8" => Value::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
        "i4" => Value::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
        "b1" => Value::Bool(bytes.first().is_some_and(|byte| *byte != 0)),
        _ => return None,
    })
}

/// A tensor of a class of its own: (function, class, arguments, attributes).
fn typed(machine: &Machine<'_>, given: &[Id]) -> Result<Value, String> {
    let [function, class, arguments, ..] = given else {
        return Err("a tensor is rebuilt from too few values".to_owned());
    };
    let class = name(machine, *class)?;
    let plain = ["torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"];
    let rebuilt = name(machine, *function)?;
    if !plain.contains(&class.as_str()) || !rebuilt.starts_with("torch._utils._rebuild_") {
        return Ok(Value::Refused(format!("is a tensor of the class `{class}`").into()));
    }
    let Value::Tuple(arguments) = machine.value(*arguments) else {
        return Err("a tensor is rebuilt from no tuple".to_owned());
    };
    let arguments: Vec<Id> = arguments.iter().take(16).copied().collect();
    let rebuilt = tensor(machine, &rebuilt, &arguments)?;
    Ok(rebuilt.unwrap_or_else(|| Value::Refused("is an unknown kind of tensor".into())))
}

/// A tensor, when the call makes one.
fn tensor(machine: &Machine<'_>, full: &str, given: &[Id]) -> Result<Option<Value>, String> {
    let refused = |what: &str| Ok(Some(Value::Refused(what.into())));
    let too_few = || Err(format!("`{full}` is called with {} arguments", given.len()));
    match full {
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            let Some(data) = given.first() else { return too_few() };
            match machine.value(*data) {
                made @ (Value::Tensor(_) | Value::Refused(_)) => Ok(Some(made.clone())),
                _ => Err("a parameter is made of something else than a tensor".to_owned()),
            }
        }
        "torch._utils._rebuild_tensor"
        | "torch._utils._rebuild_tensor_v2"
        | "torch._utils._rebuild_tensor_v3" => {
            let [storage, first, shape, strides, rest @ ..] = given else { return too_few() };
            let v3 = full.ends_with("_v3");
            let dtype = if v3 { Some(rest.get(2).copied().unwrap_or(*storage)) } else { None };
            let marks = rest.get(if v3 { 3 } else { 2 });
            if let Some(Value::Dict(marks)) = marks.map(|id| machine.value(*id))
                && !marks.is_empty()
            {
                return refused("is a conjugate or negated view");
            }
            view(machine, (*storage, dtype), *first, (*shape, *strides)).map(Some)
        }
        "torch._utils._rebuild_qtensor" => refused("is quantised"),
        "torch._utils._rebuild_sparse_tensor" => refused("is sparse"),
        _ if full.starts_with("torch._utils._rebuild_") => {
            let how = full.trim_start_matches("torch._utils._rebuild_");
            refused(&format!("is a tensor of the kind `{how}`"))
        }
        _ if full.starts_with("torch.distributed") || full.contains("ShardedTensor") => {
            refused(&format!("is a part of a sharded tensor (`{full}`); gather the shards first"))
        }
        _ if full.starts_with("torch.") && full.ends_with("Tensor") => {
            refused(&format!("is a `{full}` of a PyTorch before 0.4"))
        }
        _ => Ok(None),
    }
}

/// Numbers of a tuple, none of them negative.
fn extents(machine: &Machine<'_>, id: Id, what: &str) -> Result<Vec<usize>, String> {
    let Value::Tuple(numbers) = machine.value(id) else {
        return Err(format!("the {what} of a tensor is no tuple"));
    };
    if numbers.len() > 64 {
        return Err(format!("the {what} of a tensor has {} axes", numbers.len()));
    }
    let one = |id: &Id| count(machine, *id, what);
    numbers.iter().map(one).collect()
}

fn count(machine: &Machine<'_>, id: Id, what: &str) -> Result<usize, String> {
    match machine.value(id) {
        Value::Int(number) => usize::try_from(*number)
            .map_err(|_| format!("the {what} of a tensor is negative: {number}")),
        _ => Err(format!("the {what} of a tensor is no number")),
    }
}

fn view(
    machine: &Machine<'_>,
    (storage, dtype): (Id, Option<Id>),
    first: Id,
    (shape, strides): (Id, Id),
) -> Result<Value, String> {
    let Value::Storage(storage) = machine.value(storage) else {
        return Err("a tensor has no storage".to_owned());
    };
    let shape = extents(machine, shape, "shape")?;
    let strides = extents(machine, strides, "stride")?;
    if shape.len() != strides.len() {
        return Err("a tensor has another number of strides than of axes".to_owned());
    }
    let first = count(machine, first, "offset")?;
    let first = first.checked_add(storage.start).ok_or("the offset of a tensor is too large")?;
    let dtype = match (dtype, &storage.unknown) {
        (Some(dtype), _) => {
            let (_, name) = global(machine, dtype)?;
            Dtype::from_torch(&name).ok_or(name)
        }
        (None, Some(unknown)) => {
            let name = String::from_utf8_lossy(&machine.bytes[unknown.clone()]).into_owned();
            Err(shown(name.trim_end_matches("Storage")))
        }
        (None, None) => Ok(storage.dtype.unwrap_or(Dtype::U8)),
    };
    let dtype = match dtype {
        Ok(dtype) => dtype,
        Err(name) if name.starts_with('Q') || name.starts_with('q') => {
            return Ok(Value::Refused(format!("is quantised ({name})").into()));
        }
        Err(name) => return Ok(Value::Refused(format!("has dtype {name}").into())),
    };
    // Storages without a type count bytes.
    let held = if storage.dtype.is_none() { storage.held / dtype.size() } else { storage.held };
    let key = storage.key.clone();
    Ok(Value::Tensor(Box::new(View { dtype, key, held, first, shape, strides })))
}

/// The storage that a persistent id names: ("storage", type, key, place, elements, part).
pub(super) fn persistent(machine: &Machine<'_>, id: Id) -> Result<Value, String> {
    let Value::Tuple(parts) = machine.value(id) else {
        return Err("a persistent id is no tuple".to_owned());
    };
    let kind = parts.first().map(|id| machine.value(*id));
    let is =
        |name: &[u8]| matches!(kind, Some(Value::Text(t)) if &machine.bytes[t.clone()] == name);
    if is(b"module") && parts.len() > 1 {
        return match machine.value(parts[1]) {
            class @ Value::Global(..) => Ok(class.clone()),
            _ => Err("a persistent id is none of a class".to_owned()),
        };
    }
    let [_, class, key, _, held, rest @ ..] = parts.as_slice() else {
        return Err("a persistent id is none of a storage".to_owned());
    };
    let (Value::Global(_, name), Value::Text(key)) = (machine.value(*class), machine.value(*key))
    else {
        return Err("a persistent id is none of a storage".to_owned());
    };
    if !is(b"storage") || key.len() > 256 {
        return Err("a persistent id is none of a storage".to_owned());
    }
    let held = count(machine, *held, "storage")?;
    let start = match rest.first().map(|id| machine.value(*id)) {
        None | Some(Value::None) => 0,
        Some(Value::Tuple(part)) if part.len() == 3 => count(machine, part[1], "offset")?,
        Some(_) => return Err("a part of a storage is no tuple".to_owned()),
    };
    let written = &machine.bytes[name.clone()];
    let untyped = matches!(written, b"UntypedStorage" | b"_UntypedStorage");
    let dtype = std::str::from_utf8(written).ok().and_then(Dtype::from_storage);
    let unknown = (dtype.is_none() && !untyped).then(|| name.clone());
    Ok(Value::Storage(Storage { dtype, unknown, key: key.clone(), held, start }))
}

/// Gives an object its state. Only opaque values keep it, so that tensors in it are counted.
pub(super) fn build(machine: &mut Machine<'_>, target: Id, state: Id) {
    let foreign = match machine.value(state) {
        Value::Tuple(parts) => parts.get(1).is_some_and(|id| {
            matches!(machine.value(*id), Value::Text(text) if &machine.bytes[text.clone()] == b">")
        }),
        _ => false,
    };
    match machine.value_mut(target) {
        Value::Opaque(opaque) => opaque.held.push(state),
        // A numpy dtype of the other byte order.
        text @ Value::Text(_) if foreign => *text = Value::None,
        _ => {}
    }
}
