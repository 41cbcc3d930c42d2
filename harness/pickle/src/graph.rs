//! Values while the machine still works on them, and how they become a tree.
//!
//! Later opcodes change what earlier ones have made and others already point to, and a hostile pickle
//! can tie knots. So values live in one flat list and point to each other by index, which is cheap to
//! drop; only what the result reaches is turned into [`Value`]s, without recursion.

use std::sync::Arc;

use crate::{
    MAX_DEPTH, MAX_VALUES,
    error::PickleError,
    value::{Object, Value},
};

/// A value on the stack: itself if it is small, else its place in the graph.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Node(u32),
}

pub(crate) enum Node {
    /// What holds no other value: strings, bytes, names, large integers.
    Leaf(Value),
    List(Vec<Slot>),
    Tuple(Vec<Slot>),
    Dict(Vec<(Slot, Slot)>),
    Set(Vec<Slot>),
    Object(Box<ObjectNode>),
    PersistentId(Slot),
}

pub(crate) struct ObjectNode {
    pub(crate) class: Slot,
    pub(crate) args: Slot,
    pub(crate) kwargs: Option<Slot>,
    pub(crate) state: Option<Slot>,
    pub(crate) items: Vec<Slot>,
    pub(crate) entries: Vec<(Slot, Slot)>,
}

/// Gives meaning to objects while the tree is built, from the leaves up. What is returned takes the
/// place of the object and must not nest deeper than it did.
pub(crate) trait Rebuild {
    type Error: From<PickleError>;

    /// `None` leaves the object as it is.
    fn object(&mut self, object: &Object) -> Result<Option<Value>, Self::Error>;

    /// Looks at the id of something kept outside the pickle.
    fn persistent_id(&mut self, _id: &Value) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// All values that were made so far.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    pub(crate) fn add(&mut self, node: Node) -> Slot {
        // The machine stops at MAX_VALUES opcodes, of which each adds at most one node.
        let id = self.nodes.len() as u32;
        self.nodes.push(node);
        Slot::Node(id)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Node> {
        match slot {
            Slot::Node(id) => self.nodes.get(id as usize),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Node> {
        match slot {
            Slot::Node(id) => self.nodes.get_mut(id as usize),
            _ => None,
        }
    }

    /// The tree below `root`.
    pub(crate) fn into_value<R: Rebuild>(
        self,
        root: Slot,
        rebuild: &mut R,
    ) -> Result<Value, R::Error> {
        let mut built = Built((0..self.nodes.len()).map(|_| State::New).collect());
        let mut todo = vec![Step::Enter(root)];
        while let Some(step) = todo.pop() {
            match step {
                Step::Enter(Slot::Node(id)) => match built.0[id as usize] {
                    State::Done(_) => {}
                    // Whatever is open is being built for the sake of something inside it.
                    State::Open => return Err(PickleError::Cycle.into()),
                    State::New => {
                        built.0[id as usize] = State::Open;
                        todo.push(Step::Leave(id));
                        self.nodes[id as usize]
                            .for_each_child(|child| todo.push(Step::Enter(child)));
                    }
                },
                Step::Enter(_) => {}
                Step::Leave(id) => {
                    let node = &self.nodes[id as usize];
                    let done = built.measure(node)?;
                    let value = built.value(node, rebuild)?;
                    built.0[id as usize] = State::Done(Done { value, ..done });
                }
            }
        }
        Ok(built.get(root).0)
    }
}

enum Step {
    Enter(Slot),
    Leave(u32),
}

enum State {
    New,
    Open,
    Done(Done),
}

struct Done {
    value: Value,
    depth: usize,
    /// The number of values in the tree, shared ones counted again at each place.
    weight: usize,
}

struct Built(Vec<State>);

impl Built {
    /// The value of a slot, its depth and its weight. All children are done before their parent.
    fn get(&self, slot: Slot) -> (Value, usize, usize) {
        let scalar = match slot {
            Slot::None => Value::None,
            Slot::Bool(truth) => Value::Bool(truth),
            Slot::Int(int) => Value::Int(int),
            Slot::Float(float) => Value::Float(float),
            Slot::Node(id) => match &self.0[id as usize] {
                State::Done(done) => return (done.value.clone(), done.depth, done.weight),
                State::New | State::Open => unreachable!("children are built before their parents"),
            },
        };
        (scalar, 0, 1)
    }

    /// Depth and weight of a node, with no value yet.
    fn measure(&self, node: &Node) -> Result<Done, PickleError> {
        let (mut depth, mut weight) = (0, 1_usize);
        node.for_each_child(|child| {
            let (child_depth, child_weight) = match child {
                Slot::Node(id) => match &self.0[id as usize] {
                    State::Done(done) => (done.depth, done.weight),
                    State::New | State::Open => {
                        unreachable!("children are built before their parents")
                    }
                },
                _ => (0, 1),
            };
            depth = depth.max(child_depth + 1);
            weight = weight.saturating_add(child_weight);
        });
        if depth > MAX_DEPTH {
            return Err(PickleError::TooDeep { limit: MAX_DEPTH });
        }
        if weight > MAX_VALUES {
            return Err(PickleError::TooLarge { limit: MAX_VALUES });
        }
        Ok(Done { value: Value::None, depth, weight })
    }

    fn value<R: Rebuild>(&self, node: &Node, rebuild: &mut R) -> Result<Value, R::Error> {
        let one = |slot: &Slot| self.get(*slot).0;
        let pair = |(key, value): &(Slot, Slot)| (one(key), one(value));
        Ok(match node {
            Node::Leaf(value) => value.clone(),
            Node::List(items) => Value::List(items.iter().map(one).collect()),
            Node::Tuple(items) => Value::Tuple(items.iter().map(one).collect()),
            Node::Set(items) => Value::Set(items.iter().map(one).collect()),
            Node::Dict(entries) => Value::Dict(entries.iter().map(pair).collect()),
            Node::PersistentId(id) => {
                let id = one(id);
                rebuild.persistent_id(&id)?;
                Value::PersistentId(Arc::new(id))
            }
            Node::Object(object) => {
                let object = Object {
                    class: one(&object.class),
                    args: one(&object.args),
                    kwargs: object.kwargs.as_ref().map(one),
                    state: object.state.as_ref().map(one),
                    items: object.items.iter().map(one).collect(),
                    entries: object.entries.iter().map(pair).collect(),
                };
                match rebuild.object(&object)? {
                    Some(value) => value,
                    None => Value::Object(Arc::new(object)),
                }
            }
        })
    }
}

impl Node {
    fn for_each_child(&self, mut visit: impl FnMut(Slot)) {
        match self {
            Node::Leaf(_) => {}
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => {
                items.iter().for_each(|item| visit(*item));
            }
            Node::Dict(entries) => entries.iter().for_each(|(key, value)| {
                visit(*key);
                visit(*value);
            }),
            Node::PersistentId(id) => visit(*id),
            Node::Object(object) => {
                visit(object.class);
                visit(object.args);
                object.kwargs.into_iter().chain(object.state).for_each(&mut visit);
                object.items.iter().for_each(|item| visit(*item));
                object.entries.iter().for_each(|(key, value)| {
                    visit(*key);
                    visit(*value);
                });
            }
        }
    }
}
