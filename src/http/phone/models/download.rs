//! stub
pub(in crate::http) async fn start() {}
