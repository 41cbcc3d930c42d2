//! What the opcodes work with: what follows them in the pickle, the stack, the memo, and messages.

use std::sync::Arc;

use super::{Machine, global};
use crate::{
    error::PickleError,
    graph::{Node, ObjectNode, Slot},
    text::{self, Decimal},
    value::Value,
};

impl<'a> Machine<'a> {
    // What follows an opcode.

    pub(super) fn check_left(&self, len: u64) -> Result<usize, PickleError> {
        let left = self.bytes.len() - self.position;
        match usize::try_from(len) {
            Ok(len) if len <= left => Ok(len),
            _ => Err(PickleError::Truncated { offset: self.position, expected: len, got: left }),
        }
    }

    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], PickleError> {
        let len = self.check_left(len)?;
        let taken = &self.bytes[self.position..self.position + len];
        self.position += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let taken = self.take(N as u64)?;
        Ok(taken.try_into().expect("`take` returns as many bytes as asked for"))
    }

    /// Bytes behind their count, which is little endian, unsigned and `N` bytes long.
    pub(super) fn counted<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let mut len = [0; 8];
        len[..N].copy_from_slice(&self.array::<N>()?);
        self.take(u64::from_le_bytes(len))
    }

    /// Bytes behind their count of four bytes, for which a sign was once thought useful.
    pub(super) fn counted_signed(&mut self) -> Result<&'a [u8], PickleError> {
        let len = i32::from_le_bytes(self.array()?);
        let len = u64::try_from(len).map_err(|_| self.invalid("length"))?;
        self.take(len)
    }

    /// The line up to the next newline, which is taken too.
    pub(super) fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Truncated {
            offset: self.bytes.len(),
            expected: 1,
            got: 0,
        })?;
        self.position += end + 1;
        Ok(&rest[..end])
    }

    pub(super) fn global_lines(&mut self) -> Result<Value, PickleError> {
        let mut text = || {
            let line = self.line()?;
            std::str::from_utf8(line).map(Arc::from).map_err(|_| self.invalid("UTF-8"))
        };
        Ok(global(text()?, text()?))
    }

    pub(super) fn memo_index(&mut self) -> Result<u64, PickleError> {
        let line = self.line()?;
        let index = std::str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
        index.ok_or_else(|| self.invalid("memo index"))
    }

    // The stack.

    pub(super) fn pop(&mut self) -> Result<Slot, PickleError> {
        let slot = self.top()?;
        self.stack.pop();
        Ok(slot)
    }

    /// The topmost value above the last mark.
    pub(super) fn top(&self) -> Result<Slot, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack[floor..].last().copied().ok_or_else(|| self.underflow())
    }

    pub(super) fn pop_to_mark(&mut self) -> Result<Vec<Slot>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.underflow())?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn pop_pairs_to_mark(&mut self) -> Result<Vec<(Slot, Slot)>, PickleError> {
        let items = self.pop_to_mark()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.wrong_operand("a value for each key"));
        }
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    }

    pub(super) fn push_node(&mut self, node: Node) {
        let slot = self.graph.add(node);
        self.stack.push(slot);
    }

    pub(super) fn push_leaf(&mut self, value: Value) {
        self.push_node(Node::Leaf(value));
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        self.push_leaf(Value::Bytes(bytes.into()));
    }

    pub(super) fn push_text(&mut self, bytes: &[u8]) -> Result<(), PickleError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid("UTF-8"))?;
        self.push_leaf(Value::Str(text.into()));
        Ok(())
    }

    pub(super) fn push_decimal(&mut self, line: &[u8]) -> Result<(), PickleError> {
        let decimal = text::decimal(line).ok_or_else(|| self.invalid("decimal integer"))?;
        self.push_integer(decimal);
        Ok(())
    }

    pub(super) fn push_integer(&mut self, integer: Decimal) {
        match integer {
            Decimal::Small(small) => self.stack.push(Slot::Int(small)),
            Decimal::Big(bytes) => self.push_leaf(Value::BigInt(bytes.into())),
        }
    }

    pub(super) fn push_object(
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

    pub(super) fn text_of(&self, slot: Slot) -> Result<Arc<str>, PickleError> {
        match self.graph.get(slot) {
            Some(Node::Leaf(Value::Str(text))) => Ok(Arc::clone(text)),
            _ => Err(self.wrong_operand("a module and a name as text")),
        }
    }

    // Changes to the value that is then on top of the stack.

    pub(super) fn append(&mut self, new: Vec<Slot>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::List(items)) => items.extend(new),
            Some(Node::Object(object)) => object.items.extend(new),
            _ => return Err(self.wrong_operand("a list")),
        }
        Ok(())
    }

    pub(super) fn add(&mut self, new: Vec<Slot>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::Set(items)) => items.extend(new),
            Some(Node::Object(object)) => object.items.extend(new),
            _ => return Err(self.wrong_operand("a set")),
        }
        Ok(())
    }

    pub(super) fn set(&mut self, new: Vec<(Slot, Slot)>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.graph.get_mut(target) {
            Some(Node::Dict(entries)) => entries.extend(new),
            Some(Node::Object(object)) => object.entries.extend(new),
            _ => return Err(self.wrong_operand("a dict")),
        }
        Ok(())
    }

    // The memo.

    pub(super) fn remember(&mut self, index: u64) -> Result<(), PickleError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    pub(super) fn recall(&mut self, index: u64) -> Result<(), PickleError> {
        let error = PickleError::NotInMemo { index, offset: self.at };
        let slot = *self.memo.get(&index).ok_or(error)?;
        self.stack.push(slot);
        Ok(())
    }

    // What can go wrong.

    pub(super) fn underflow(&self) -> PickleError {
        PickleError::StackUnderflow { opcode: self.opcode, offset: self.at }
    }

    pub(super) fn wrong_operand(&self, expected: &'static str) -> PickleError {
        PickleError::WrongOperand { opcode: self.opcode, offset: self.at, expected }
    }

    pub(super) fn invalid(&self, what: &'static str) -> PickleError {
        PickleError::InvalidText { what, offset: self.at }
    }

    pub(super) fn unsupported(&self, what: &'static str) -> PickleError {
        PickleError::Unsupported { what, offset: self.at }
    }
}
