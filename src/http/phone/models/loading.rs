//! stub
pub(in crate::http) async fn status() {}
