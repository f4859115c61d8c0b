//! The stack machine of pickles.

use std::collections::BTreeMap;

use super::{Id, Opaque, Span, Value, Values, call};

/// The most instructions of a pickle.
const MAX_STEPS: usize = 1 << 25;
/// The most values of a pickle.
const MAX_VALUES: usize = 1 << 22;
/// The most values on the stack or in the memo.
const MAX_HELD: usize = 1 << 21;
/// The most bytes that calls make out of what is there.
const MAX_SPENT: usize = 1 << 28;

/// Runs the pickle at the beginning of some bytes.
pub(in crate::archive) fn run(bytes: &[u8]) -> Result<Values<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        all: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        spent: 0,
    };
    for _ in 0..MAX_STEPS {
        let at = machine.at;
        let step = machine.byte().and_then(|code| machine.step(code));
        match step.map_err(|reason| format!("the pickle at byte {at}: {reason}"))? {
            Some(root) => {
                let Machine { all, at: length, .. } = machine;
                return Ok(Values { bytes, all, root, length });
            }
            None => continue,
        }
    }
    Err(format!("the pickle has more than {MAX_STEPS} instructions"))
}

/// The state of the machine.
pub(super) struct Machine<'a> {
    pub(super) bytes: &'a [u8],
    at: usize,
    pub(super) all: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
    /// Bytes that calls have made out of what was there.
    spent: usize,
}

impl Machine<'_> {
    fn take(&mut self, count: usize) -> Result<Span, String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it is cut")?;
        let span = self.at..end;
        self.at = end;
        Ok(span)
    }

    fn byte(&mut self) -> Result<u8, String> {
        let span = self.take(1)?;
        Ok(self.bytes[span.start])
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, width: usize) -> Result<u64, String> {
        let span = self.take(width)?;
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&self.bytes[span]);
        Ok(u64::from_le_bytes(bytes))
    }

    /// A part whose length stands before it.
    fn counted(&mut self, width: usize) -> Result<Span, String> {
        let length = self.number(width)?;
        self.take(usize::try_from(length).map_err(|_| "it is cut")?)
    }

    fn text(&mut self, width: usize) -> Result<Value, String> {
        Ok(Value::Text(self.counted(width)?))
    }

    fn line(&mut self) -> Result<Span, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(4096).position(|byte| *byte == b'\n');
        let span = self.take(length.ok_or("a name has no end")?)?;
        self.at += 1;
        Ok(span)
    }

    pub(super) fn add(&mut self, value: Value) -> Result<Id, String> {
        if self.all.len() >= MAX_VALUES {
            return Err(format!("it holds more than {MAX_VALUES} values"));
        }
        self.all.push(value);
        Ok((self.all.len() - 1) as Id)
    }

    fn push(&mut self, id: Id) -> Result<(), String> {
        if self.stack.len() >= MAX_HELD {
            return Err(format!("it stacks more than {MAX_HELD} values"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn put(&mut self, value: Value) -> Result<(), String> {
        let id = self.add(value)?;
        self.push(id)
    }

    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack[floor..].last();
        top.copied().ok_or_else(|| "it takes a value that is not there".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The values since the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("it takes a mark that is not there")?;
        Ok(self.stack.split_off(mark))
    }

    fn mark(&mut self) -> Result<(), String> {
        if self.marks.len() >= MAX_HELD {
            return Err(format!("it sets more than {MAX_HELD} marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// One instruction; the result when it was the last.
    fn step(&mut self, code: u8) -> Result<Option<Id>, String> {
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => self.take(8).map(|_| ())?, // the length of a frame
            b'(' => self.mark()?,
            b'0' => self.pop().map(|_| ())?,
            b'1' => drop(self.marked()?),
            b'2' => self.top().and_then(|top| self.push(top))?,
            b'N' => self.put(Value::None)?,
            0x88 | 0x89 => self.put(Value::Bool(code == 0x88))?,
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.put(Value::Int(i64::from(number)))?;
            }
            b'K' => self.number(1).and_then(|number| self.put(Value::Int(number as i64)))?,
            b'M' => self.number(2).and_then(|number| self.put(Value::Int(number as i64)))?,
            b'G' => {
                let bits = self.number(8)?.swap_bytes();
                self.put(Value::Float(f64::from_bits(bits)))?;
            }
            0x8a => self.counted(1).and_then(|span| self.long(span))?,
            0x8b => self.counted(4).and_then(|span| self.long(span))?,
            b'U' | 0x8c => self.text(1).and_then(|text| self.put(text))?,
            b'T' | b'X' => self.text(4).and_then(|text| self.put(text))?,
            0x8d => self.text(8).and_then(|text| self.put(text))?,
            b'C' => self.counted(1).and_then(|span| self.put(Value::Bytes(span)))?,
            b'B' => self.counted(4).and_then(|span| self.put(Value::Bytes(span)))?,
            0x8e | 0x96 => self.counted(8).and_then(|span| self.put(Value::Bytes(span)))?,
            b']' | 0x8f => self.put(Value::List(Vec::new()))?,
            b'}' => self.put(Value::Dict(Vec::new()))?,
            b')' => self.put(Value::Tuple(Vec::new()))?,
            b't' => self.marked().and_then(|values| self.put(Value::Tuple(values)))?,
            b'l' | 0x91 => self.marked().and_then(|values| self.put(Value::List(values)))?,
            b'd' => {
                let entries = pairs(&self.marked()?)?;
                self.put(Value::Dict(entries))?;
            }
            0x85..=0x87 => self.tuple(usize::from(code - 0x84))?,
            b'a' | b'e' | 0x90 | b's' | b'u' => self.extend(code)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memoise(code)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.put(Value::Global(module, name))?;
            }
            _ => self.object(code)?,
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(format!("protocol {other} is not known")),
        }
    }

    fn long(&mut self, span: Span) -> Result<(), String> {
        let bytes = &self.bytes[span.clone()];
        if bytes.len() > 8 {
            return self.put(Value::Long(span));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.put(Value::Int(i64::from_le_bytes(wide)))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        self.put(Value::Tuple(values))
    }

    /// Adds to the list, set or dict on the stack.
    fn extend(&mut self, code: u8) -> Result<(), String> {
        let values = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.marked()?,
        };
        let target = self.top()? as usize;
        let by_key = matches!(code, b's' | b'u');
        match &mut self.all[target] {
            Value::List(list) if !by_key => list.extend(values),
            Value::Dict(entries) if by_key => entries.append(&mut pairs(&values)?),
            Value::Opaque(opaque) => opaque.held.extend(values),
            _ => return Err("it adds to a value that is no collection".to_owned()),
        }
        Ok(())
    }

    fn memoise(&mut self, code: u8) -> Result<(), String> {
        let number = match code {
            b'q' | b'h' => self.number(1)? as u32,
            b'r' | b'j' => self.number(4)? as u32,
            _ => self.memo.len() as u32,
        };
        if matches!(code, b'h' | b'j') {
            let found = self.memo.get(&number).copied();
            return self.push(found.ok_or_else(|| format!("it recalls {number}, never kept"))?);
        }
        if self.memo.len() >= MAX_HELD {
            return Err(format!("it keeps more than {MAX_HELD} values"));
        }
        let top = self.top()?;
        self.memo.insert(number, top);
        Ok(())
    }

    /// The instructions that make objects.
    fn object(&mut self, code: u8) -> Result<(), String> {
        match code {
            b'Q' => {
                let id = self.pop()?;
                let made = call::persistent(self, id)?;
                self.put(made)
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let made = call::call(self, callee, arguments)?;
                self.put(made)
            }
            0x92 => {
                let (named, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                call::name(self, class)?;
                self.put(Value::Opaque(Box::new(Opaque { class, held: vec![arguments, named] })))
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) =
                    (self.value(module), self.value(name))
                else {
                    return Err("the name of a class is no text".to_owned());
                };
                let made = Value::Global(module.clone(), name.clone());
                self.put(made)
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                call::build(self, target, state);
                Ok(())
            }
            _ => {
                let sign = char::from(code).escape_debug();
                Err(format!("instruction `{sign}` ({code:#04x}) is none that torch.save writes"))
            }
        }
    }

    /// Counts what a call is about to make; a short pickle can call often with much.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > MAX_SPENT {
            return Err(format!("its calls make more than {MAX_SPENT} bytes"));
        }
        Ok(())
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        &self.all[id as usize]
    }

    pub(super) fn value_mut(&mut self, id: Id) -> &mut Value {
        &mut self.all[id as usize]
    }
}

fn pairs(values: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("a key has no value".to_owned());
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_itself_and_a_deep_one_are_read_without_recursion() {
        let values = run(b"\x80\x02]q\x00h\x00a.").unwrap();
        let Value::List(list) = values.get(values.root) else { panic!() };
        assert_eq!(list, &[values.root]);
        let mut deep = b"\x80\x02".to_vec();
        deep.extend([b']'; 100_000]);
        deep.extend([b'a'; 99_999]);
        deep.push(b'.');
        assert_eq!(run(&deep).unwrap().length, deep.len());
    }

    #[test]
    fn numbers_keep_their_sign() {
        for (bytes, number) in [
            (&b"J\xff\xff\xff\xff."[..], -1),
            (b"\x8a\x01\x80.", -128),
            (b"\x8a\x00.", 0),
            (b"M\x00\x80.", 32768),
        ] {
            let values = run(bytes).unwrap();
            assert!(matches!(values.get(values.root), Value::Int(n) if *n == number));
        }
    }

    #[test]
    fn bombs_end_with_an_error() {
        let doubling = [b"]".as_slice(), &vec![b'2'; MAX_HELD + 1]].concat();
        assert!(run(&doubling).unwrap_err().contains("stacks more than"));
        let marks = vec![b'('; MAX_HELD + 1];
        assert!(run(&marks).unwrap_err().contains("marks"));
        let values: Vec<u8> = b"N0".repeat(MAX_VALUES + 1);
        assert!(run(&values).unwrap_err().contains("values"));
        assert!(run(b"X\xff\xff\xff\x7fa.").unwrap_err().contains("cut"));
        assert!(run(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.").unwrap_err().contains("cut"));
        assert!(run(b"N(0.").unwrap_err().contains("not there"));
        assert!(
            run(b"cos\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap_err().contains("os.system")
        );
    }
}
