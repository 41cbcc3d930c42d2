//! Why a pickle could not be read. The texts read on after "failed to read pickle: ".

use thiserror::Error;

/// A pickle that is damaged, hostile, or asks for what is not plain data.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// The data end before the pickle does.
    #[error("data end at byte {offset}: expected {expected} more, got {got}")]
    Truncated {
        /// Where the missing part should begin.
        offset: usize,
        /// Its length, as far as it is known.
        expected: u64,
        /// What is left.
        got: usize,
    },
    /// A byte that is no opcode of protocols 0 to 5.
    #[error("unknown opcode 0x{opcode:02x} at byte {offset}")]
    UnknownOpcode {
        /// The byte.
        opcode: u8,
        /// Where it is.
        offset: usize,
    },
    /// Something that plain data do not need and this reader does not do.
    #[error("unsupported {what} at byte {offset}")]
    Unsupported {
        /// What it is.
        what: &'static str,
        /// Where it is.
        offset: usize,
    },
    /// A protocol later than 5.
    #[error("protocol expected at most 5, got {got}")]
    Protocol {
        /// The protocol asked for.
        got: u8,
    },
    /// An opcode wants values that are not there.
    #[error("opcode `{opcode}` at byte {offset} found too little on the stack")]
    StackUnderflow {
        /// The name of the opcode.
        opcode: &'static str,
        /// Where it is.
        offset: usize,
    },
    /// An opcode found another kind of value than it works on.
    #[error("opcode `{opcode}` at byte {offset} expected {expected}")]
    WrongOperand {
        /// The name of the opcode.
        opcode: &'static str,
        /// Where it is.
        offset: usize,
        /// What it works on.
        expected: &'static str,
    },
    /// A reference to a value that was never remembered.
    #[error("memo entry {index} asked for at byte {offset} was never stored")]
    NotInMemo {
        /// The entry.
        index: u64,
        /// Where it is asked for.
        offset: usize,
    },
    /// Text that is not what it should be.
    #[error("invalid {what} at byte {offset}")]
    InvalidText {
        /// What it should be.
        what: &'static str,
        /// Where the opcode is.
        offset: usize,
    },
    /// A value that contains itself.
    #[error("a value contains itself, so the pickle is no tree of plain data")]
    Cycle,
    /// Values nested deeper than [`crate::MAX_DEPTH`].
    #[error("values are nested deeper than {limit} levels")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// More than [`crate::MAX_VALUES`] values, or fewer that grow past it when written out.
    #[error("pickle holds more than {limit} values")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
}
