//! Parts of networks: not kinds, used by them.
