// The handler of cuda.cc without XLA and without a GPU: this file plays XLA, device_as_host.cc the driver and NVRTC.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda.cc"

struct XLA_FFI_Error {
  std::string message;
};

struct XLA_FFI_ExecutionContext {
  std::vector<void*> memory;
};

namespace {

XLA_FFI_Error* create(XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->message}; }
void message_of(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); }
void destroy(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }
XLA_FFI_Error* add(XLA_FFI_Handler_Register_Args*) { return nullptr; }

XLA_FFI_Error* stream_of(XLA_FFI_Stream_Get_Args* args) {
  args->stream = args->ctx;  // any address
  return nullptr;
}

XLA_FFI_Error* allocate(XLA_FFI_DeviceMemory_Allocate_Args* args) {
  args->data = std::malloc(args->size);
  args->ctx->memory.push_back(args->data);
  return args->data ? nullptr : new XLA_FFI_Error{"no memory"};
}

XLA_FFI_Error* release(XLA_FFI_DeviceMemory_Free_Args* args) {
  std::free(args->data);
  return nullptr;
}

XLA_FFI_Api* api() {
  static XLA_FFI_Api* const made = [] {
    auto* each = new XLA_FFI_Api{};
    each->struct_size = XLA_FFI_Api_STRUCT_SIZE;
    each->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
    each->XLA_FFI_Error_Create = create;
    each->XLA_FFI_Error_GetMessage = message_of;
    each->XLA_FFI_Error_Destroy = destroy;
    each->XLA_FFI_Handler_Register = add;
    each->XLA_FFI_Stream_Get = stream_of;
    each->XLA_FFI_DeviceMemory_Allocate = allocate;
    each->XLA_FFI_DeviceMemory_Free = release;
    return each;
  }();
  return made;
}

// A buffer of XLA's with what it points to.
struct Held {
  std::vector<int64_t> dims;
  XLA_FFI_Buffer buffer;

  Held(XLA_FFI_DataType type, const void* data, std::vector<int64_t> shape) : dims(std::move(shape)) {
    buffer = {XLA_FFI_Buffer_STRUCT_SIZE, nullptr, type, const_cast<void*>(data), static_cast<int64_t>(dims.size()),
              dims.data()};
  }
  Held(Held&& other) : dims(std::move(other.dims)), buffer(other.buffer) { buffer.dims = dims.data(); }
};

}  // namespace

namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi() { return api(); }
}

// As in plain.cc; the number of threads and the instruction set do not matter here.
extern "C" __attribute__((visibility("default"))) int bloodcell_apply(
    const i64* words, i64 word_count, const void* const* data, const int* types, const i64* rows, const i64* widths,
    i64 operand_count, const u8* in, i64 batch, i64 height, i64 width, void* out, int type, int, const char*,
    char* said, i64 said_size) {
  const XLA_FFI_DataType kinds[] = {XLA_FFI_DataType_PRED, XLA_FFI_DataType_U8, XLA_FFI_DataType_S32,
                                    XLA_FFI_DataType_F32, XLA_FFI_DataType_F64};
  const XLA_FFI_DataType results[] = {XLA_FFI_DataType_F32, XLA_FFI_DataType_BF16, XLA_FFI_DataType_F16,
                                      XLA_FFI_DataType_U8};
  std::vector<Held> held;
  held.emplace_back(XLA_FFI_DataType_U8, in, std::vector<int64_t>{batch, height, width, 3});
  for (i64 each = 0; each < operand_count; ++each) {
    held.emplace_back(kinds[types[each]], data[each], std::vector<int64_t>{rows[each], widths[each]});
  }
  Held result(results[type], out, {batch, height, width, 3});
  std::vector<XLA_FFI_ArgType> arg_types(held.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<void*> args;
  for (Held& each : held) args.push_back(&each.buffer);
  XLA_FFI_RetType ret_type = XLA_FFI_RetType_BUFFER;
  void* ret = &result.buffer;
  XLA_FFI_Array array = {XLA_FFI_DataType_S64, static_cast<size_t>(word_count), const_cast<i64*>(words)};
  XLA_FFI_ByteSpan name = {"steps", 5};
  XLA_FFI_ByteSpan* names = &name;
  XLA_FFI_AttrType attr_type = XLA_FFI_AttrType_ARRAY;
  void* attr = &array;
  XLA_FFI_ExecutionContext context;
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = api();
  frame.ctx = &context;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(args.size()), arg_types.data(), args.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, 1, &ret_type, &ret};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 1, &attr_type, &names, &attr};
  XLA_FFI_Error* error = (*handler)(&frame);
  if (!error) return 0;
  std::strncpy(said, error->message.c_str(), static_cast<size_t>(said_size) - 1);
  said[said_size - 1] = '\0';
  delete error;
  return 1;
}
