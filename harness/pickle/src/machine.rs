//! The stack machine that a pickle is a program for, with every call left undone.
//!
//! The opcodes are those of Python's `pickletools`, which documents each of them.

use std::{collections::HashMap, sync::Arc};

use crate::{
    MAX_VALUES,
    error::PickleError,
    graph::{Graph, Node, ObjectNode, Rebuild, Slot},
    text::{self, Decimal},
    value::{Global, Value},
};

/// Reads the pickle at the front of `bytes`; `rebuild` gives meaning to its objects.
pub(crate) fn parse_with<R: Rebuild>(
    bytes: &[u8],
    rebuild: &mut R,
) -> Result<(Value, usize), R::Error> {
    let mut machine = Machine {
        bytes,
        position: 0,
        at: 0,
        opcode: "PROTO",
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        graph: Graph::default(),
    };
    let root = machine.run()?;
    let consumed = machine.position;
    // What the result does not reach is dropped here, before the tree is built.
    let Machine { graph, .. } = machine;
    Ok((graph.into_value(root, rebuild)?, consumed))
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Where the opcode at work is, and its name, for messages.
    at: usize,
    opcode: &'static str,
    stack: Vec<Slot>,
    /// How long the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Slot>,
    graph: Graph,
}

impl<'a> Machine<'a> {
    /// Runs to the end of the pickle.
    fn run(&mut self) -> Result<Slot, PickleError> {
        for _ in 0..MAX_VALUES {
            self.at = self.position;
            let [opcode] = self.array()?;
            self.opcode = name(opcode);
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
        Err(PickleError::TooLarge { limit: MAX_VALUES })
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            // The frame of a pickle.
            0x80 => {
                let [protocol] = self.array()?;
                if protocol > 5 {
                    return Err(PickleError::Protocol { got: protocol });
                }
            }
            0x95 => {
                let len = u64::from_le_bytes(self.array()?);
                self.check_left(len)?;
            }

            // The stack.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            // Single values.
            b'N' => self.stack.push(Slot::None),
            0x88 => self.stack.push(Slot::Bool(true)),
            0x89 => self.stack.push(Slot::Bool(false)),
            b'I' => match self.line()? {
                b"00" => self.stack.push(Slot::Bool(false)),
                b"01" => self.stack.push(Slot::Bool(true)),
                line => self.push_decimal(line)?,
            },
            b'L' => {
                let line = self.line()?;
                self.push_decimal(line)?;
            }
            b'J' => {
                let int = i32::from_le_bytes(self.array()?);
                self.stack.push(Slot::Int(int.into()));
            }
            b'K' => {
                let [int] = self.array()?;
                self.stack.push(Slot::Int(int.into()));
            }
            b'M' => {
                let int = u16::from_le_bytes(self.array()?);
                self.stack.push(Slot::Int(int.into()));
            }
            0x8a => {
                let int = self.counted::<1>()?;
                self.push_integer(text::integer(int));
            }
            0x8b => {
                let int = self.counted_signed()?;
                self.push_integer(text::integer(int));
            }
            b'F' => {
                let line = self.line()?;
                let float =
                    std::str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
                let float = float.ok_or_else(|| self.invalid("decimal number"))?;
                self.stack.push(Slot::Float(float));
            }
            b'G' => {
                let float = f64::from_be_bytes(self.array()?);
                self.stack.push(Slot::Float(float));
            }

            // Text and bytes.
            b'S' => {
                let line = self.line()?;
                let bytes = text::quoted(line).ok_or_else(|| self.invalid("quoted string"))?;
                self.push_bytes(&bytes);
            }
            b'T' => {
                let bytes = self.counted_signed()?;
                self.push_bytes(bytes);
            }
            b'U' | b'C' => {
                let bytes = self.counted::<1>()?;
                self.push_bytes(bytes);
            }
            b'B' => {
                let bytes = self.counted::<4>()?;
                self.push_bytes(bytes);
            }
            0x8e | 0x96 => {
                let bytes = self.counted::<8>()?;
                self.push_bytes(bytes);
            }
            b'V' => {
                let line = self.line()?;
                let text = text::raw_unicode(line).ok_or_else(|| self.invalid("unicode escape"))?;
                self.push_leaf(Value::Str(text.into()));
            }
            0x8c => {
                let bytes = self.counted::<1>()?;
                self.push_text(bytes)?;
            }
            b'X' => {
                let bytes = self.counted::<4>()?;
                self.push_text(bytes)?;
            }
            0x8d => {
                let bytes = self.counted::<8>()?;
                self.push_text(bytes)?;
            }

            // Containers.
            b']' => self.push_node(Node::List(Vec::new())),
            b'}' => self.push_node(Node::Dict(Vec::new())),
            b')' => self.push_node(Node::Tuple(Vec::new())),
            0x8f => self.push_node(Node::Set(Vec::new())),
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::List(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::Tuple(items));
            }
            0x91 => {
                let items = self.pop_to_mark()?;
                self.push_node(Node::Set(items));
            }
            b'd' => {
                let entries = self.pop_pairs_to_mark()?;
                self.push_node(Node::Dict(entries));
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_node(Node::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            0x90 => {
                let items = self.pop_to_mark()?;
                self.add(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let entries = self.pop_pairs_to_mark()?;
                self.set(entries)?;
            }

            // The memo.
            b'p' => {
                let index = self.memo_index()?;
                self.remember(index)?;
            }
            b'q' => {
                let [index] = self.array()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index.into())?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => {
                let index = self.memo_index()?;
                self.recall(index)?;
            }
            b'h' => {
                let [index] = self.array()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index.into())?;
            }

            // Names and what is made by calling them.
            b'c' => {
                let global = self.global_lines()?;
                self.push_leaf(global);
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let global = global(self.text_of(module)?, self.text_of(name)?);
                self.push_leaf(global);
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let class = self.pop()?;
                self.push_object(class, args, None)?;
            }
            0x92 => {
                let kwargs = self.pop()?;
                let args = self.pop()?;
                let class = self.pop()?;
                self.push_object(class, args, Some(kwargs))?;
            }
            b'i' => {
                let global = self.global_lines()?;
                let args = self.pop_to_mark()?;
                let class = self.graph.add(Node::Leaf(global));
                let args = self.graph.add(Node::Tuple(args));
                self.push_object(class, args, None)?;
            }
            b'o' => {
                let mut args = self.pop_to_mark()?;
                if args.is_empty() {
                    return Err(self.underflow());
                }
                let class = args.remove(0);
                let args = self.graph.add(Node::Tuple(args));
                self.push_object(class, args, None)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match self.graph.get_mut(target) {
                    Some(Node::Object(object)) => object.state = Some(state),
                    _ => return Err(self.wrong_operand("an object")),
                }
            }
            b'P' => {
                let line = self.line()?;
                let line = std::str::from_utf8(line).map_err(|_| self.invalid("UTF-8"))?;
                let id = self.graph.add(Node::Leaf(Value::Str(line.into())));
                self.push_node(Node::PersistentId(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_node(Node::PersistentId(id));
            }

            0x82..=0x84 => return Err(self.unsupported("extension code of `copyreg`")),
            0x97 | 0x98 => return Err(self.unsupported("out-of-band buffer")),
            _ => return Err(PickleError::UnknownOpcode { opcode, offset: self.at }),
        }
        Ok(())
    }

    // What follows an opcode.

    fn check_left(&self, len: u64) -> Result<usize, PickleError> {
        let left = self.bytes.len() - self.position;
        match usize::try_from(len) {
            Ok(len) if len <= left => Ok(len),
            _ => Err(PickleError::Truncated { offset: self.position, expected: len, got: left }),
        }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], PickleError> {
        let len = self.check_left(len)?;
        let taken = &self.bytes[self.position..self.position + len];
        self.position += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let taken = self.take(N as u64)?;
        Ok(taken.try_into().expect("`take` returns as many bytes as asked for"))
    }

    /// Bytes behind their count, which is little endian, unsigned and `N` bytes long.
    fn counted<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let mut len = [0; 8];
        len[..N].copy_from_slice(&self.array::<N>()?);
        self.take(u64::from_le_bytes(len))
    }

    /// Bytes behind their count of four bytes, for which a sign was once thought useful.
    fn counted_signed(&mut self) -> Result<&'a [u8], PickleError> {
        let len = i32::from_le_bytes(self.array()?);
        let len = u64::try_from(len).map_err(|_| self.invalid("length"))?;
        self.take(len)
    }

    /// The line up to the next newline, which is taken too.
    fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Truncated {
            offset: self.bytes.len(),
            expected: 1,
            got: 0,
        })?;
        self.position += end + 1;
        Ok(&rest[..end])
    }

    fn global_lines(&mut self) -> Result<Value, PickleError> {
        let mut text = || {
            let line = self.line()?;
            std::str::from_utf8(line).map(Arc::from).map_err(|_| self.invalid("UTF-8"))
        };
        Ok(global(text()?, text()?))
    }

    fn memo_index(&mut self) -> Result<u64, PickleError> {
        let line = self.line()?;
        let index = std::str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
        index.ok_or_else(|| self.invalid("memo index"))
    }

    // The stack.

    fn pop(&mut self) -> Result<Slot, PickleError> {
        let slot = self.top()?;
        self.stack.pop();
        Ok(slot)
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Result<Slot, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| self.underflow())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Slot>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.underflow())?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_pairs_to_mark(&mut self) -> Result<Vec<(Slot, Slot)>, PickleError> {
        let items = self.pop_to_mark()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.wrong_operand("a value for each key"));
        }
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    }

    fn push_node(&mut self, node: Node) {
        let slot = self.graph.add(node);
        self.stack.push(slot);
    }

    fn push_leaf(&mut self, value: Value) {
        self.push_node(Node::Leaf(value));
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.push_leaf(Value::Bytes(bytes.into()));
    }

    fn push_text(&mut self, bytes: &[u8]) -> Result<(), PickleError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid("UTF-8"))?;
        self.push_leaf(Value::Str(text.into()));
        Ok(())
    }

    fn push_decimal(&mut self, line: &[u8]) -> Result<(), PickleError> {
        let decimal = text::decimal(line).ok_or_else(|| self.invalid("decimal integer"))?;
        self.push_integer(decimal);
        Ok(())
    }

    fn push_integer(&mut self, integer: Decimal) {
        match integer {
            Decimal::Small(small) => self.stack.push(Slot::Int(small)),
            Decimal::Big(bytes) => self.push_leaf(Value::BigInt(bytes.into())),
        }
    }

    fn push_object(
        &mut self,
        class: Slot,
        args: Slot,
        kwargs: Option<Slot>,
    ) -> Result<(), PickleError> {
        if !matches!(self.graph.get(args), Some(Node::Tuple(_))) {
            return Err(self.wrong_operand("a tuple of arguments"));
        }
        let (items, entries) = (Vec::new(), Vec::new());
        let object = ObjectNode { class, args, kwargs, state: None, items, entries };
        self.push_node(Node::Object(Box::new(object)));
        Ok(())
    }

    fn text_of(&self, slot: Slot) -> Result<Arc<str>, PickleError> {
        match self.graph.get(slot) {
            Some(Node::Leaf(Value::Str(text))) => Ok(Arc::clone(text)),
            _ => Err(self.wrong_operand("a module and a name as text")),
        }
    }

    // Changes to the value that is then on top of the stack.

    fn append(&mut self, new: Vec<Slot>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::List(items)) => items.extend(new),
            Some(Node::Object(object)) => object.items.extend(new),
            _ => return Err(self.wrong_operand("a list")),
        }
        Ok(())
    }

    fn add(&mut self, new: Vec<Slot>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::Set(items)) => items.extend(new),
            Some(Node::Object(object)) => object.items.extend(new),
            _ => return Err(self.wrong_operand("a set")),
        }
        Ok(())
    }

    fn set(&mut self, new: Vec<(Slot, Slot)>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::Dict(entries)) => entries.extend(new),
            Some(Node::Object(object)) => object.entries.extend(new),
            _ => return Err(self.wrong_operand("a dict")),
        }
        Ok(())
    }

    // The memo.

    fn remember(&mut self, index: u64) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), PickleError> {
        let error = PickleError::NotInMemo { index, offset: self.at };
        let slot = *self.memo.get(&index).ok_or(error)?;
        self.stack.push(slot);
        Ok(())
    }

    // What can go wrong.

    fn underflow(&self) -> PickleError {
        PickleError::StackUnderflow { opcode: self.opcode, offset: self.at }
    }

    fn wrong_operand(&self, expected: &'static str) -> PickleError {
        PickleError::WrongOperand { opcode: self.opcode, offset: self.at, expected }
    }

    fn invalid(&self, what: &'static str) -> PickleError {
        PickleError::InvalidText { what, offset: self.at }
    }

    fn unsupported(&self, what: &'static str) -> PickleError {
        PickleError::Unsupported { what, offset: self.at }
    }
}

/// A class or function, under the name that Python 3 has for its module.
fn global(module: Arc<str>, name: Arc<str>) -> Value {
    let module = match &*module {
        "__builtin__" => "builtins".into(),
        "copy_reg" => "copyreg".into(),
        _ => module,
    };
    Value::Global(Global { module, name }.into())
}

/// What `pickletools` calls an opcode, for those that can fail with more than missing data.
fn name(opcode: u8) -> &'static str {
    match opcode {
        b'.' => "STOP",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'l' => "LIST",
        b't' => "TUPLE",
        b'd' => "DICT",
        b'a' => "APPEND",
        b'e' => "APPENDS",
        b's' => "SETITEM",
        b'u' => "SETITEMS",
        b'p' => "PUT",
        b'q' => "BINPUT",
        b'r' => "LONG_BINPUT",
        b'R' => "REDUCE",
        b'i' => "INST",
        b'o' => "OBJ",
        b'b' => "BUILD",
        b'Q' => "BINPERSID",
        0x81 => "NEWOBJ",
        0x85 => "TUPLE1",
        0x86 => "TUPLE2",
        0x87 => "TUPLE3",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        _ => "?",
    }
}
