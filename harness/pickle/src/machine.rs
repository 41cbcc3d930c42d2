//! The stack machine that a pickle is a program for, with every call left undone.
//!
//! The opcodes are those of Python's `pickletools`, which documents each of them.

mod operands;

use std::{collections::HashMap, sync::Arc};

use crate::{
    MAX_VALUES,
    error::PickleError,
    graph::{Graph, Node, Rebuild, Slot},
    text,
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
