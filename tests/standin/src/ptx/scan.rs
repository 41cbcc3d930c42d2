//! A module's outline: kernels, functions and variables, with bodies left as tokens.

use std::ops::Range;

use super::lex::{Number, Token, number, tokens};
use crate::api::{Outcome, refusal};
use crate::driver::codes::INVALID_PTX;

/// A declared parameter or variable.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variable {
    pub(super) name: String,
    /// `param`, `shared`, `local`, `global`, `const`.
    pub(super) space: String,
    /// Bytes of one element.
    pub(super) width: usize,
    /// Bytes in all; 0 for an array whose length the launch decides.
    pub(super) len: usize,
    pub(super) align: usize,
    pub(super) values: Vec<Value>,
}

/// One element of an initialiser.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bits(u64),
    Address(String, i64),
}

/// A kernel (`.entry`) or function (`.func`).
#[derive(Debug, Clone)]
pub(super) struct Callable {
    pub(super) name: String,
    pub(super) is_kernel: bool,
    pub(super) returns: Vec<Variable>,
    pub(super) params: Vec<Variable>,
    /// Most threads of a block, where the kernel says.
    pub(super) max_threads: Option<u64>,
    /// The exact shape of a block, where the kernel says.
    pub(super) required: Option<[u32; 3]>,
    /// Absent for a declaration.
    pub(super) body: Option<Range<usize>>,
}

pub(super) struct Outline<'a> {
    pub(super) tokens: Vec<Token<'a>>,
    pub(super) target: String,
    pub(super) callables: Vec<Callable>,
    pub(super) variables: Vec<Variable>,
}

/// Reads tokens one after the other.
pub(super) struct Cursor<'t, 'a> {
    pub(super) tokens: &'t [Token<'a>],
    pub(super) at: usize,
}

impl<'a> Cursor<'_, 'a> {
    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    pub(super) fn next(&mut self) -> Outcome<Token<'a>> {
        let token = self.peek().ok_or_else(|| refusal(INVALID_PTX, "PTX ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    /// Whether the mark comes next, which is then passed.
    pub(super) fn passes(&mut self, mark: char) -> bool {
        let next = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(next);
        next
    }

    pub(super) fn expect(&mut self, mark: char) -> Outcome {
        match self.next()? {
            Token::Mark(found) if found == mark => Ok(()),
            other => Err(refusal(INVALID_PTX, format!("PTX: expected `{mark}`, got {other:?}"))),
        }
    }

    pub(super) fn word(&mut self) -> Outcome<&'a str> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => Err(refusal(INVALID_PTX, format!("PTX: expected a word, got {other:?}"))),
        }
    }

    pub(super) fn integer(&mut self) -> Outcome<i64> {
        let negative = self.passes('-');
        match self.next()? {
            Token::Number(text) => match number(text)? {
                Number::Integer(value) => Ok(if negative { -value } else { value } as i64),
                _ => Err(refusal(INVALID_PTX, format!("PTX: expected an integer, got `{text}`"))),
            },
            other => Err(refusal(INVALID_PTX, format!("PTX: expected a number, got {other:?}"))),
        }
    }

    fn skip_to(&mut self, mark: char) -> Outcome {
        while self.next()? != Token::Mark(mark) {}
        Ok(())
    }
}

/// Bytes of a type such as `.u32`.
pub(super) fn width(type_name: &str) -> Option<usize> {
    Some(match type_name.trim_start_matches('.') {
        "b8" | "u8" | "s8" | "pred" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

/// Reads a declaration up to, without, what ends it: `.align 4 .b8 name[24] = {1, 2}`.
pub(super) fn variable(cursor: &mut Cursor<'_, '_>, space: &str) -> Outcome<Variable> {
    let mut found = Variable {
        name: String::new(),
        space: space.into(),
        width: 0,
        len: 0,
        align: 0,
        values: Vec::new(),
    };
    let mut lanes = 1;
    loop {
        let word = cursor.word()?;
        match word {
            ".align" => found.align = cursor.integer()? as usize,
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            ".ptr" | ".global" | ".const" | ".shared" | ".local" => {}
            _ if word.starts_with('.') => {
                let width = width(word);
                found.width = width
                    .ok_or_else(|| refusal(INVALID_PTX, format!("PTX: unknown type `{word}`")))?;
            }
            _ => {
                found.name = word.into();
                break;
            }
        }
    }
    let natural = found.width * lanes;
    found.len = natural;
    let mut first = true;
    while cursor.passes('[') {
        let count = if cursor.passes(']') { 0 } else { cursor.integer()? as usize };
        if count > 0 || !first {
            cursor.expect(']')?;
        } else if cursor.peek() == Some(Token::Mark(']')) {
            cursor.at += 1;
        }
        found.len *= count;
        first = false;
    }
    found.align = found.align.max(natural.min(16)).max(1);
    if cursor.passes('=') {
        found.values = values(cursor)?;
    }
    Ok(found)
}

fn values(cursor: &mut Cursor<'_, '_>) -> Outcome<Vec<Value>> {
    let mut found = Vec::new();
    let braced = cursor.passes('{');
    loop {
        if braced && cursor.passes('}') {
            break;
        }
        let negative = cursor.passes('-');
        match cursor.next()? {
            Token::Mark('{') => {
                cursor.at -= 1;
                found.extend(values(cursor)?);
            }
            Token::Number(text) => found.push(Value::Bits(match number(text)? {
                Number::Integer(value) => (if negative { -value } else { value }) as u64,
                Number::Single(bits) => u64::from(bits),
                Number::Double(bits) => bits,
            })),
            Token::Word(name) => {
                let name = if cursor.passes('(') {
                    let inner = cursor.word()?;
                    cursor.expect(')')?;
                    inner
                } else {
                    name
                };
                let offset = if cursor.passes('+') { cursor.integer()? } else { 0 };
                found.push(Value::Address(name.into(), offset));
            }
            other => {
                return Err(refusal(INVALID_PTX, format!("PTX: {other:?} as an initial value")));
            }
        }
        if !braced {
            break;
        }
        if !cursor.passes(',') {
            cursor.expect('}')?;
            break;
        }
    }
    Ok(found)
}

fn parameters(cursor: &mut Cursor<'_, '_>) -> Outcome<Vec<Variable>> {
    let mut found = Vec::new();
    cursor.expect('(')?;
    while !cursor.passes(')') {
        let space = cursor.word()?;
        found.push(variable(cursor, space.trim_start_matches('.'))?);
        cursor.passes(',');
    }
    Ok(found)
}

fn callable(cursor: &mut Cursor<'_, '_>, is_kernel: bool) -> Outcome<Callable> {
    let returns = match cursor.peek() {
        Some(Token::Mark('(')) if !is_kernel => parameters(cursor)?,
        _ => Vec::new(),
    };
    let name = cursor.word()?.to_owned();
    let params = match cursor.peek() {
        Some(Token::Mark('(')) => parameters(cursor)?,
        _ => Vec::new(),
    };
    let mut found = Callable {
        name,
        is_kernel,
        returns,
        params,
        max_threads: None,
        required: None,
        body: None,
    };
    loop {
        match cursor.next()? {
            Token::Mark(';') => return Ok(found),
            Token::Mark('{') => {
                let start = cursor.at;
                let mut depth = 1;
                while depth > 0 {
                    match cursor.next()? {
                        Token::Mark('{') => depth += 1,
                        Token::Mark('}') => depth -= 1,
                        _ => {}
                    }
                }
                found.body = Some(start..cursor.at - 1);
                return Ok(found);
            }
            Token::Word(directive @ (".maxntid" | ".reqntid")) => {
                let mut shape = [1_u32; 3];
                for (at, extent) in shape.iter_mut().enumerate() {
                    if at > 0 && !cursor.passes(',') {
                        break;
                    }
                    *extent = cursor.integer()? as u32;
                }
                found.max_threads = Some(shape.iter().map(|extent| u64::from(*extent)).product());
                if directive == ".reqntid" {
                    found.required = Some(shape);
                }
            }
            _ => {}
        }
    }
}

/// Outlines a module.
///
/// # Errors
/// The text is no PTX.
pub(super) fn outline(text: &str) -> Outcome<Outline<'_>> {
    let all = tokens(text)?;
    let mut cursor = Cursor { tokens: &all, at: 0 };
    let (mut callables, mut variables) = (Vec::new(), Vec::new());
    let mut target = String::new();
    let mut version = None;
    while cursor.peek().is_some() {
        let word = cursor.word()?;
        match word {
            ".version" => {
                let number = cursor.next()?;
                version = Some(number);
                // `9.0` is a number and a word that begins with a dot.
                if let Some(Token::Word(rest)) = cursor.peek()
                    && rest.trim_start_matches('.').parse::<u32>().is_ok()
                {
                    cursor.at += 1;
                }
            }
            ".target" => {
                target = cursor.word()?.into();
                while cursor.passes(',') {
                    cursor.word()?;
                }
            }
            ".address_size" => {
                cursor.integer()?;
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => callables.push(callable(&mut cursor, true)?),
            ".func" => callables.push(callable(&mut cursor, false)?),
            ".global" | ".const" | ".shared" | ".local" => {
                variables.push(variable(&mut cursor, &word[1..])?);
                cursor.expect(';')?;
            }
            ".file" | ".loc" => {
                cursor.next()?;
                while matches!(cursor.peek(), Some(Token::Text(_) | Token::Number(_)))
                    || cursor.peek() == Some(Token::Mark(','))
                {
                    cursor.at += 1;
                }
            }
            ".section" => cursor.skip_to('}')?,
            ".pragma" | ".alias" => cursor.skip_to(';')?,
            _ => return Err(refusal(INVALID_PTX, format!("PTX: `{word}` at the top level"))),
        }
    }
    if version.is_none() || target.is_empty() {
        return Err(refusal(INVALID_PTX, "PTX: `.version` and `.target` are missing"));
    }
    Ok(Outline { tokens: all, target, callables, variables })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 9.0\n.target sm_90a\n.address_size 64\n";

    #[test]
    fn an_outline_has_kernels_functions_and_variables() {
        let text = format!(
            "{HEAD}.global .align 4 .b8 table[3] = {{1, 2, 0xFF}};\n\
             .extern .shared .align 16 .b8 room[];\n\
             .func (.param .b64 out) f(.param .b64 x) {{ ret; }}\n\
             .visible .entry k(.param .u64 .ptr .align 1 a, .param .align 8 .b8 s[24])\n\
             .maxntid 256, 1, 1\n{{ {{ ret; }} }}\n"
        );
        let outline = outline(&text).unwrap();
        assert_eq!(outline.target, "sm_90a");
        assert_eq!(outline.variables[0].values[2], Value::Bits(255));
        assert_eq!((outline.variables[1].len, outline.variables[1].align), (0, 16));
        let (function, kernel) = (&outline.callables[0], &outline.callables[1]);
        assert!(!function.is_kernel && function.returns.len() == 1);
        assert_eq!(kernel.max_threads, Some(256));
        assert_eq!((kernel.params[1].len, kernel.params[1].align), (24, 8));
        assert_eq!(kernel.body.clone().unwrap().len(), 4);
    }

    #[test]
    fn what_is_no_ptx_is_refused() {
        assert_eq!(outline("int main() {}").err().unwrap().code, INVALID_PTX);
        assert_eq!(outline("").err().unwrap().code, INVALID_PTX);
    }
}
