//! x
#![no_std]
#![allow(dead_code, missing_docs)]
mod grid;
