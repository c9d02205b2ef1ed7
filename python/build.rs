fn main() {
    // Sets `Py_GIL_DISABLED` for an interpreter without a GIL.
    pyo3_build_config::use_pyo3_cfgs();
}
