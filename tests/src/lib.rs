//! stator-tests
