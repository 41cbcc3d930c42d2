//! A body's statements.

use super::lex::{Number, Token, number};
use super::scan::{Cursor, Variable, variable, width};
use crate::api::{Outcome, refusal};
use crate::driver::codes::INVALID_PTX;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// A register, a variable, a label or a special register.
    Name(String),
    Number(Number),
    /// `[base+offset]`, or `base+offset` outside of brackets.
    Sum(Box<Operand>, i64),
    Address(Box<Operand>),
    /// `{a, b}` or `(a, b)`.
    List(Vec<Operand>),
    /// `p|q`.
    Pair(String, String),
    /// `!p`.
    Not(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Instruction {
    /// The predicate that guards it, and whether it is negated.
    pub(super) guard: Option<(String, bool)>,
    /// What its name is made of: `ld`, `global`, `v4`, `f32`.
    pub(super) name: Vec<String>,
    pub(super) operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Statement {
    Open,
    Close,
    Label(String),
    /// Bytes, name, and how many numbered registers there are.
    Register(usize, String, Option<usize>),
    Variable(Variable),
    /// Where an indirect branch may go.
    Targets(String, Vec<String>),
    Instruction(Instruction),
}

impl Instruction {
    pub(super) fn has(&self, part: &str) -> bool {
        self.name.iter().any(|own| own == part)
    }

    /// As it was written, for messages.
    pub(super) fn text(&self) -> String {
        let operands: Vec<String> = self.operands.iter().map(show).collect();
        format!("{} {}", self.name.join("."), operands.join(", "))
    }
}

fn show(operand: &Operand) -> String {
    match operand {
        Operand::Name(name) => name.clone(),
        Operand::Number(Number::Integer(value)) => value.to_string(),
        Operand::Number(Number::Single(bits)) => format!("0f{bits:08X}"),
        Operand::Number(Number::Double(bits)) => format!("0d{bits:016X}"),
        Operand::Sum(base, offset) => format!("{}+{offset}", show(base)),
        Operand::Address(inner) => format!("[{}]", show(inner)),
        Operand::List(all) => format!("{{{}}}", all.iter().map(show).collect::<Vec<_>>().join(",")),
        Operand::Pair(one, other) => format!("{one}|{other}"),
        Operand::Not(name) => format!("!{name}"),
    }
}

fn operand(cursor: &mut Cursor<'_, '_>) -> Outcome<Operand> {
    let list = |cursor: &mut Cursor<'_, '_>, end| {
        let mut all = Vec::new();
        while !cursor.passes(end) {
            all.push(operand(cursor)?);
            cursor.passes(',');
        }
        Ok(Operand::List(all))
    };
    match cursor.next()? {
        Token::Mark('[') => {
            let inner = operand(cursor)?;
            cursor.expect(']')?;
            Ok(Operand::Address(Box::new(inner)))
        }
        Token::Mark('{') => list(cursor, '}'),
        Token::Mark('(') => list(cursor, ')'),
        Token::Mark('!') => Ok(Operand::Not(cursor.word()?.into())),
        Token::Mark('-') => match cursor.next()? {
            Token::Number(text) => match number(text)? {
                Number::Integer(value) => Ok(Operand::Number(Number::Integer(-value))),
                _ => Err(refusal(INVALID_PTX, format!("PTX: `-{text}`"))),
            },
            other => Err(refusal(INVALID_PTX, format!("PTX: `-` before {other:?}"))),
        },
        Token::Number(text) => Ok(Operand::Number(number(text)?)),
        Token::Word(name) => {
            if cursor.passes('|') {
                return Ok(Operand::Pair(name.into(), cursor.word()?.into()));
            }
            if cursor.passes('+') {
                let base = Box::new(Operand::Name(name.into()));
                return Ok(Operand::Sum(base, cursor.integer()?));
            }
            if cursor.peek() == Some(Token::Mark('-')) {
                let base = Box::new(Operand::Name(name.into()));
                return Ok(Operand::Sum(base, cursor.integer()?));
            }
            Ok(Operand::Name(name.into()))
        }
        other => Err(refusal(INVALID_PTX, format!("PTX: {other:?} as an operand"))),
    }
}

fn registers(cursor: &mut Cursor<'_, '_>, found: &mut Vec<Statement>) -> Outcome {
    let kind = cursor.word()?;
    let bytes = width(kind);
    let bytes = bytes.ok_or_else(|| refusal(INVALID_PTX, format!("PTX: register of `{kind}`")))?;
    loop {
        let name = cursor.word()?.to_owned();
        let mut count = None;
        if cursor.passes('<') {
            count = Some(cursor.integer()? as usize);
            cursor.expect('>')?;
        }
        found.push(Statement::Register(bytes, name, count));
        if !cursor.passes(',') {
            return cursor.expect(';');
        }
    }
}

/// Parses a body.
///
/// # Errors
/// It is no PTX.
pub(super) fn statements(tokens: &[Token<'_>]) -> Outcome<Vec<Statement>> {
    let mut cursor = Cursor { tokens, at: 0 };
    let mut found = Vec::new();
    while let Some(token) = cursor.peek() {
        match token {
            Token::Mark('{') => {
                cursor.at += 1;
                found.push(Statement::Open);
            }
            Token::Mark('}') => {
                cursor.at += 1;
                found.push(Statement::Close);
            }
            Token::Mark(';') => cursor.at += 1,
            Token::Mark('@') => {
                cursor.at += 1;
                let negated = cursor.passes('!');
                let guard = Some((cursor.word()?.to_owned(), negated));
                found.push(Statement::Instruction(instruction(&mut cursor, guard)?));
            }
            Token::Word(".reg") => {
                cursor.at += 1;
                registers(&mut cursor, &mut found)?;
            }
            Token::Word(space @ (".param" | ".local" | ".shared" | ".global" | ".const")) => {
                cursor.at += 1;
                found.push(Statement::Variable(variable(&mut cursor, &space[1..])?));
                cursor.expect(';')?;
            }
            Token::Word(".loc") => {
                // `.loc 1 23 4` and what may follow, to the end of the line: numbers and words
                // that only this directive has.
                cursor.at += 1;
                while matches!(cursor.peek(), Some(Token::Number(_))) {
                    cursor.at += 1;
                }
            }
            Token::Word(".pragma") => while cursor.next()? != Token::Mark(';') {},
            Token::Word(name) => {
                if cursor.tokens.get(cursor.at + 1) == Some(&Token::Mark(':')) {
                    cursor.at += 2;
                    if cursor.peek() == Some(Token::Word(".branchtargets")) {
                        cursor.at += 1;
                        let mut targets = Vec::new();
                        while !cursor.passes(';') {
                            targets.push(cursor.word()?.to_owned());
                            cursor.passes(',');
                        }
                        found.push(Statement::Targets(name.into(), targets));
                    } else {
                        found.push(Statement::Label(name.into()));
                    }
                } else {
                    found.push(Statement::Instruction(instruction(&mut cursor, None)?));
                }
            }
            other => return Err(refusal(INVALID_PTX, format!("PTX: {other:?} in a body"))),
        }
    }
    Ok(found)
}

fn instruction(cursor: &mut Cursor<'_, '_>, guard: Option<(String, bool)>) -> Outcome<Instruction> {
    let name = cursor.word()?.split('.').map(str::to_owned).collect();
    let mut operands = Vec::new();
    while !cursor.passes(';') {
        operands.push(operand(cursor)?);
        if !cursor.passes(',') {
            cursor.expect(';')?;
            break;
        }
    }
    Ok(Instruction { guard, name, operands })
}

#[cfg(test)]
mod tests {
    use super::super::lex::tokens;
    use super::*;

    #[test]
    fn a_body_is_statements() {
        let text = ".reg .f32 %f<3>; L: @!%p1 ld.global.v2.f32 {%f1, %f2}, [%rd1+-4]; bra L;";
        let all = statements(&tokens(text).unwrap()).unwrap();
        assert_eq!(all[0], Statement::Register(4, "%f".into(), Some(3)));
        assert_eq!(all[1], Statement::Label("L".into()));
        let Statement::Instruction(load) = &all[2] else { panic!("{:?}", all[2]) };
        assert_eq!(load.guard, Some(("%p1".into(), true)));
        assert_eq!(load.text(), "ld.global.v2.f32 {%f1,%f2}, [%rd1+-4]");
    }
}
