//! The stored form of a node.
//!
//! Leaf: `01, n u8, (key delta v, state v)*`. Inner: `02, count v, bitmap u16, child u32*`. The first byte is kind and version in one;
//! `v` is LEB128, the rest big endian. The delta of the first key is the key itself, of the others the distance to the key before.

use smallvec::SmallVec;

use crate::events::{
    NodeNumber, StateKeyNumber, StateNumber,
    trie::{Entry, LEAF_KEYS, Node},
};

const LEAF: u8 = 1;
const INNER: u8 = 2;

/// Bytes that no node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes of a state node are damaged")]
pub struct DamagedNode;

impl Node {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(entries) => encode_leaf(entries),
            Self::Inner {
                count,
                bitmap,
                children,
            } => {
                let mut out = Vec::with_capacity(8 + 4 * children.len());
                out.push(INNER);
                write_varint(*count, &mut out);
                out.extend_from_slice(&bitmap.to_be_bytes());
                for child in children {
                    out.extend_from_slice(&child.0.to_be_bytes());
                }
                out
            }
        }
    }

    /// Reads the stored form.
    ///
    /// # Errors
    ///
    /// If [`Node::encode`] never writes these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DamagedNode> {
        let mut bytes = bytes;
        let node = match take::<1>(&mut bytes)? {
            [LEAF] => Self::Leaf(decode_leaf(&mut bytes)?),
            [INNER] => decode_inner(&mut bytes)?,
            _ => return Err(DamagedNode),
        };
        if bytes.is_empty() {
            Ok(node)
        } else {
            Err(DamagedNode)
        }
    }
}

fn encode_leaf(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + 6 * entries.len());
    out.push(LEAF);
    out.push(u8::try_from(entries.len()).unwrap_or(u8::MAX));
    let mut last = 0;
    for (key, state) in entries {
        write_varint(key.0.wrapping_sub(last), &mut out);
        write_varint(state.0, &mut out);
        last = key.0;
    }
    out
}

fn decode_leaf(bytes: &mut &[u8]) -> Result<Vec<Entry>, DamagedNode> {
    let [count] = take::<1>(bytes)?;
    if usize::from(count) > LEAF_KEYS {
        return Err(DamagedNode);
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let delta = read_varint(bytes)?;
        let key = match entries.last() {
            None => delta,
            Some(_) if delta == 0 => return Err(DamagedNode),
            Some((last, _)) => last.0.checked_add(delta).ok_or(DamagedNode)?,
        };
        entries.push((StateKeyNumber(key), StateNumber(read_varint(bytes)?)));
    }
    Ok(entries)
}

fn decode_inner(bytes: &mut &[u8]) -> Result<Node, DamagedNode> {
    let count = read_varint(bytes)?;
    let bitmap = u16::from_be_bytes(take(bytes)?);
    let mut children = SmallVec::new();
    for _ in 0..bitmap.count_ones() {
        children.push(NodeNumber(u32::from_be_bytes(take(bytes)?)));
    }
    Ok(Node::Inner {
        count,
        bitmap,
        children,
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], DamagedNode> {
    let (first, rest) = bytes.split_first_chunk().ok_or(DamagedNode)?;
    *bytes = rest;
    Ok(*first)
}

fn write_varint(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap_or(0));
}

fn read_varint(bytes: &mut &[u8]) -> Result<u32, DamagedNode> {
    let mut number = 0_u32;
    for shift in (0..32).step_by(7) {
        let [byte] = take::<1>(bytes)?;
        let bits = u32::from(byte & 0x7f);
        if shift == 28 && bits > 0x0f {
            return Err(DamagedNode);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            // A last byte of zero is a longer form of a shorter number.
            return if byte == 0 && shift > 0 {
                Err(DamagedNode)
            } else {
                Ok(number)
            };
        }
    }
    Err(DamagedNode)
}
