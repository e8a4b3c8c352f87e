// pxp_fast._build: what the compiled libraries were built from, for `pxp-fast info`. It holds no tensor and no
// operator.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

namespace {

pybind11::list split(const std::string& text) {
  pybind11::list parts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    parts.append(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

PYBIND11_MODULE(_build, m) {
  m.doc() = "How the compiled libraries of pxp_fast were built.";
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "g++ " __VERSION__;
#endif
  m.attr("instruction_sets") = split(PXP_INSTRUCTION_SETS);
  m.attr("cuda_version") = std::string(PXP_CUDA_VERSION);
  m.attr("cuda_architectures") = split(PXP_CUDA_ARCHITECTURES);
}
