// Classifies images with the program of an export, without Python: swin_edge DIR IMAGE... [--json].
// It does what `python -m edge predict` does, on JPEG and PNG, and gives the same numbers.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <jerror.h>
#include <png.h>
#include <openssl/evp.h>
#include <nlohmann/json.hpp>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

// The package ships this library, and of its headers one that cannot set the number of threads. This is its declaration.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t num_threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::extension::from_blob;
using nlohmann::json;
using Bytes = std::vector<uint8_t>;

constexpr int FORMAT_VERSION = 4;  // of edge.json

// What a user can put right, in a sentence.
struct Explained : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Bytes read_file(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) throw Explained(path.string() + " is not a file");
  std::ifstream file(path, std::ios::binary);
  Bytes content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && !file.eof()) throw Explained(path.string() + " cannot be read");
  return content;
}

// -- images -----------------------------------------------------------------------------------------------------------

// RGB bytes (height, width, 3).
struct Picture {
  int height = 0, width = 0;
  Bytes pixels;
  const uint8_t* at(int y, int x) const { return &pixels[(size_t(y) * width + x) * 3]; }
  uint8_t* at(int y, int x) { return &pixels[(size_t(y) * width + x) * 3]; }
};

Picture empty_picture(int height, int width) { return {height, width, Bytes(size_t(height) * width * 3)}; }

// The orientation (1 to 8) in an EXIF block, which begins with a TIFF header; 1 if it says none.
int orientation_of(const uint8_t* data, size_t size) {
  if (size < 14 || std::memcmp(data, "Exif\0\0", 6) != 0) return 1;
  const uint8_t* tiff = data + 6;
  const size_t length = size - 6;
  const bool little = tiff[0] == 'I';
  auto number = [&](size_t at, int bytes) -> uint32_t {
    if (at + bytes > length) return 0;
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint32_t(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
    return value;
  };
  const size_t directory = number(4, 4);
  for (uint32_t entry = 0; entry < number(directory, 2); ++entry) {
    const size_t at = directory + 2 + 12 * size_t(entry);
    if (at + 12 > length) break;
    if (number(at, 2) == 0x0112) {
      const uint32_t value = number(at + 8, 2);
      return value >= 1 && value <= 8 ? int(value) : 1;
    }
  }
  return 1;
}

Picture upright(const Picture& picture, int orientation) {
  if (orientation == 1) return picture;
  const bool turned = orientation >= 5;
  const int height = turned ? picture.width : picture.height, width = turned ? picture.height : picture.width;
  Picture result = empty_picture(height, width);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      int row = turned ? x : y, column = turned ? y : x;
      if (orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8) {
        if (orientation == 3 || orientation == 4) row = picture.height - 1 - row;
        else column = picture.width - 1 - column;
      }
      if (orientation == 2 || orientation == 3) column = picture.width - 1 - column;
      if (orientation == 6 || orientation == 7) row = picture.height - 1 - row;
      std::copy_n(picture.at(row, column), 3, result.at(y, x));
    }
  }
  return result;
}

struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf escape;
  bool is_cut = false;
  char message[JMSG_LENGTH_MAX];
};

Picture read_jpeg(const Bytes& content) {
  jpeg_decompress_struct info;
  JpegErrors errors;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = [](j_common_ptr common) {
    auto* own = reinterpret_cast<JpegErrors*>(common->err);
    common->err->format_message(common, own->message);
    std::longjmp(own->escape, 1);
  };
  errors.manager.output_message = [](j_common_ptr) {};
  errors.manager.emit_message = [](j_common_ptr common, int level) {
    // Without the end of the data the library fills the rest with grey, which Pillow refuses. Other warnings are none of ours.
    if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) reinterpret_cast<JpegErrors*>(common->err)->is_cut = true;
  };
  Picture picture;
  int orientation = 1;
  if (setjmp(errors.escape)) {
    jpeg_destroy_decompress(&info);
    throw Explained(std::string("cannot be read: ") + errors.message);
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, content.data(), content.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&info, TRUE);
  for (auto* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    if (orientation == 1) orientation = orientation_of(marker->data, marker->data_length);
  }
  const bool is_cmyk = info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK;
  if (!is_cmyk) {
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    picture = empty_picture(int(info.output_height), int(info.output_width));
    while (info.output_scanline < info.output_height) {
      JSAMPROW row = picture.at(int(info.output_scanline), 0);
      jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    if (errors.is_cut) throw Explained("cannot be read: its data are cut short");
    return upright(picture, orientation);
  }
  jpeg_destroy_decompress(&info);
  throw Explained("is a CMYK picture; save it in RGB");
}

// A pixel over white, with Pillow's arithmetic (`Image.alpha_composite`).
uint8_t over_white(uint8_t level, uint8_t alpha) {
  constexpr uint32_t BITS = 7;
  const uint32_t share = uint32_t(alpha) * 255 * 255 * (1u << BITS) / (255 * 255);
  const uint32_t sum = level * share + 255 * (255 * (1u << BITS) - share) + (0x80u << BITS);
  return uint8_t(((sum >> 8) + sum) >> 8 >> BITS);
}

Picture read_png(const Bytes& content) {
  struct Reading {
    const Bytes* content;
    size_t at;
    char message[200];
  } reading{&content, 0, ""};
  png_structp png = png_create_read_struct(
      PNG_LIBPNG_VER_STRING, &reading,
      [](png_structp own, png_const_charp message) {
        std::snprintf(static_cast<Reading*>(png_get_error_ptr(own))->message, 200, "%s", message);
        png_longjmp(own, 1);
      },
      [](png_structp, png_const_charp) {});
  png_infop info = png_create_info_struct(png);
  Picture picture;
  Bytes rgba;
  std::vector<png_bytep> rows;
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_read_struct(&png, &info, nullptr);
    throw Explained(std::string("cannot be read: ") + reading.message);
  }
  png_set_read_fn(png, &reading, [](png_structp own, png_bytep out, size_t count) {
    auto* source = static_cast<Reading*>(png_get_io_ptr(own));
    if (source->at + count > source->content->size()) png_error(own, "its data are cut short");
    std::memcpy(out, source->content->data() + source->at, count);
    source->at += count;
  });
  png_read_info(png, info);
  const int height = int(png_get_image_height(png, info)), width = int(png_get_image_width(png, info));
  if (png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY) png_set_scale_16(png);  // levels / 257, rounded
  png_set_strip_16(png);
  png_set_expand(png);  // palettes, few bits, and transparency by a colour
  png_set_gray_to_rgb(png);
  png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  rgba.resize(size_t(height) * width * 4);
  for (int y = 0; y < height; ++y) rows.push_back(&rgba[size_t(y) * width * 4]);
  png_read_image(png, rows.data());
  png_read_end(png, info);
  png_bytep exif = nullptr;
  png_uint_32 exif_size = 0;
  int orientation = 1;
  if (png_get_eXIf_1(png, info, &exif_size, &exif) && exif != nullptr) {
    Bytes block = {'E', 'x', 'i', 'f', 0, 0};  // as JPEG has it
    block.insert(block.end(), exif, exif + exif_size);
    orientation = orientation_of(block.data(), block.size());
  }
  png_destroy_read_struct(&png, &info, nullptr);
  picture = empty_picture(height, width);
  for (size_t i = 0; i < size_t(height) * width; ++i) {
    const uint8_t alpha = rgba[4 * i + 3];
    for (int c = 0; c < 3; ++c) {
      const uint8_t level = rgba[4 * i + c];
      picture.pixels[3 * i + c] = alpha == 255 ? level : over_white(level, alpha);
    }
  }
  return upright(picture, orientation);
}

Picture read_picture(const std::filesystem::path& path) {
  const Bytes content = read_file(path);
  const uint8_t png[] = {0x89, 'P', 'N', 'G'};
  try {
    if (content.size() > 3 && content[0] == 0xFF && content[1] == 0xD8) return read_jpeg(content);
    if (content.size() > 4 && std::equal(png, png + 4, content.begin())) return read_png(content);
  } catch (const Explained& error) {
    throw Explained(path.string() + " " + error.what());
  }
  throw Explained(path.string() + " must be a JPEG or a PNG");
}

// -- the arithmetic of Pillow's Image.resize --------------------------------------------------------------------------

constexpr int BITS = 32 - 8 - 2;

struct Taps {  // what an output pixel sees along an axis: input pixels from `first` on
  int first;
  std::vector<int> weights;
};

double weight(int filter, double offset) {
  const double x = std::abs(offset);
  if (filter == 2) return x < 1 ? 1 - x : 0;  // bilinear
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;  // bicubic: Keys' cubic with a = -0.5
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

std::vector<Taps> taps_of(int size, int new_size, int filter) {
  const double scale = double(size) / new_size;
  std::vector<Taps> all;
  if (filter == 0) {  // nearest; added up as Pillow does, rounding errors included
    double center = scale * 0.5;
    for (int i = 0; i < new_size; ++i, center += scale) all.push_back({std::min(int(center), size - 1), {1 << BITS}});
    return all;
  }
  const double stretch = std::max(scale, 1.0), support = (filter == 2 ? 1.0 : 2.0) * stretch;
  for (int i = 0; i < new_size; ++i) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(int(center - support + 0.5), 0), end = std::min(int(center + support + 0.5), size);
    std::vector<double> weights;
    for (int j = first; j < end; ++j) weights.push_back(weight(filter, (j - center + 0.5) * (1.0 / stretch)));
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    Taps taps{first, {}};
    for (double own : weights) {
      const double share = sum != 0 ? own / sum : own;
      taps.weights.push_back(int(share * (1 << BITS) + (share < 0 ? -0.5 : 0.5)));
    }
    all.push_back(std::move(taps));
  }
  return all;
}

uint8_t rounded(int64_t sum) { return uint8_t(std::clamp<int64_t>(sum >> BITS, 0, 255)); }

Picture resized(const Picture& picture, int height, int width, int filter) {
  Picture narrow = empty_picture(picture.height, width), result = empty_picture(height, width);
  const auto columns = taps_of(picture.width, width, filter), rows = taps_of(picture.height, height, filter);
  for (int y = 0; y < picture.height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        int64_t sum = 1 << (BITS - 1);
        for (size_t i = 0; i < columns[x].weights.size(); ++i) {
          sum += int64_t(picture.at(y, columns[x].first + int(i))[c]) * columns[x].weights[i];
        }
        narrow.at(y, x)[c] = rounded(sum);
      }
    }
  }
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        int64_t sum = 1 << (BITS - 1);
        for (size_t i = 0; i < rows[y].weights.size(); ++i) {
          sum += int64_t(narrow.at(rows[y].first + int(i), x)[c]) * rows[y].weights[i];
        }
        result.at(y, x)[c] = rounded(sum);
      }
    }
  }
  return result;
}

// -- the program ------------------------------------------------------------------------------------------------------

struct Contract {
  int height, width, filter;
  std::optional<double> crop_pct;
  bool is_float;
};

class Classifier {
 public:
  Classifier(const std::filesystem::path& folder, bool traced) {
    const auto manifest = read_manifest(folder);
    const Bytes program = read_file(folder / "model.pte");
    if (sha256(program) != manifest.at("sha256").at("model.pte").get<std::string>()) {
      throw Explained((folder / "model.pte").string() + " has another sha256 than edge.json names; copy the artefact again");
    }
    if (manifest.at("task") != "image-classification") {
      throw Explained("the artefact must be a classifier, got one of " + manifest.at("task").get<std::string>());
    }
    const json& input = manifest.at("input");
    if (input.at("colour") != "RGB") throw Explained("the program must take RGB, got " + input.at("colour").get<std::string>());
    contract_ = {input.at("height"), input.at("width"), input.at("resample"), {}, input.at("dtype") == "float32"};
    const std::vector<int> known = {0, 2, 3};
    if (std::find(known.begin(), known.end(), contract_.filter) == known.end()) {
      throw Explained("the program must resize by nearest, bilinear or bicubic (0, 2, 3), got " + std::to_string(contract_.filter));
    }
    if (!input.at("crop_pct").is_null()) contract_.crop_pct = input.at("crop_pct").get<double>();
    labels = manifest.at("labels").get<std::vector<std::string>>();
    temperature_ = manifest.at("temperature");
    auto tracer = traced ? std::make_unique<executorch::etdump::ETDumpGen>() : nullptr;
    tracer_ = tracer.get();
    module_ = std::make_unique<Module>((folder / "model.pte").string(), Module::LoadMode::File, std::move(tracer));
    if (module_->load_forward() != executorch::runtime::Error::Ok) {
      throw Explained("the ExecuTorch runtime here cannot run the program in " + folder.string());
    }
  }

  // What the program takes of a picture, as bytes of its type.
  Bytes input_of(Picture picture) const {
    int height = contract_.height, width = contract_.width;
    if (contract_.crop_pct) {
      const int rows = int(std::floor(height / *contract_.crop_pct)), columns = int(std::floor(width / *contract_.crop_pct));
      const bool is_wide = int64_t(picture.height) * columns <= int64_t(picture.width) * rows;
      height = is_wide ? rows : int(double(columns) * picture.height / picture.width);
      width = is_wide ? int(double(rows) * picture.width / picture.height) : columns;
    }
    if (picture.height != height || picture.width != width) picture = resized(picture, height, width, contract_.filter);
    const int top = (height - contract_.height) / 2, left = (width - contract_.width) / 2;
    const size_t area = size_t(contract_.height) * contract_.width;
    Bytes bytes(area * 3 * (contract_.is_float ? sizeof(float) : 1));
    auto* floats = reinterpret_cast<float*>(bytes.data());
    for (int y = 0; y < contract_.height; ++y) {
      for (int x = 0; x < contract_.width; ++x) {
        const uint8_t* pixel = picture.at(top + y, left + x);
        const size_t place = size_t(y) * contract_.width + x;
        for (int c = 0; c < 3; ++c) {
          if (contract_.is_float) floats[c * area + place] = float(pixel[c]) / 255.0f;
          else bytes[place * 3 + c] = pixel[c];
        }
      }
    }
    return bytes;
  }

  std::vector<double> probabilities(Bytes& input) {
    const int height = contract_.height, width = contract_.width;
    auto tensor = contract_.is_float ? from_blob(input.data(), {1, 3, height, width}, ScalarType::Float)
                                     : from_blob(input.data(), {1, height, width, 3}, ScalarType::Byte);
    auto outputs = module_->forward(tensor);
    if (!outputs.ok()) throw Explained("the ExecuTorch runtime here cannot run the program");
    const auto& logits = outputs->at(0).toTensor();
    if (size_t(logits.numel()) != labels.size()) throw Explained("the program does not put out a logit for each label");
    const float* values = logits.const_data_ptr<float>();
    std::vector<double> shares(values, values + labels.size());
    if (!std::all_of(shares.begin(), shares.end(), [](double own) { return std::isfinite(own); })) {
      throw Explained("the outputs of the program must be finite, got NaN or infinity; export the checkpoint again");
    }
    for (double& own : shares) own /= temperature_;
    const double largest = *std::max_element(shares.begin(), shares.end());
    double sum = 0;
    for (double& own : shares) sum += own = std::exp(own - largest);
    for (double& own : shares) own /= sum;
    return shares;
  }

  void write_trace(const std::string& file) {
    const auto trace = tracer_->get_etdump_data();
    std::ofstream stream(file, std::ios::binary);
    stream.write(static_cast<const char*>(trace.buf), std::streamsize(trace.size)).flush();
    std::free(trace.buf);
    if (!stream.good()) throw Explained(file + " cannot be written");
  }

  Bytes noise() const {
    Picture picture = empty_picture(contract_.height, contract_.width);
    uint32_t state = 1;
    for (uint8_t& level : picture.pixels) level = uint8_t((state = state * 1664525u + 1013904223u) >> 24);
    return input_of(picture);
  }

  std::vector<std::string> labels;

 private:
  static json read_manifest(const std::filesystem::path& folder) {
    const auto file = folder / "edge.json";
    if (!std::filesystem::is_regular_file(file)) {
      throw Explained(folder.string() + " has no edge.json; give a folder written by `python -m edge export`");
    }
    const Bytes content = read_file(file);
    const json manifest = json::parse(content, nullptr, false);
    if (!manifest.is_object()) throw Explained(file.string() + " is damaged; copy the artefact again");
    const int version = manifest.value("format_version", 0);
    if (version != FORMAT_VERSION) {
      throw Explained(file.string() + " has format_version " + std::to_string(version) + ", this program reads " +
                      std::to_string(FORMAT_VERSION) + "; export the checkpoint again");
    }
    return manifest;
  }

  static std::string sha256(const Bytes& content) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_Digest(content.data(), content.size(), digest, &size, EVP_sha256(), nullptr);
    std::ostringstream text;
    for (unsigned int i = 0; i < size; ++i) text << std::hex << std::setw(2) << std::setfill('0') << int(digest[i]);
    return text.str();
  }

  Contract contract_;
  double temperature_ = 1;
  std::unique_ptr<Module> module_;
  executorch::etdump::ETDumpGen* tracer_ = nullptr;  // the module owns it
};

// -- the command ------------------------------------------------------------------------------------------------------

constexpr const char* USAGE =
    "usage: swin_edge DIR IMAGE... [--top_k N] [--json] [--threads N]\n"
    "       swin_edge DIR --benchmark RUNS [--json] [--threads N] [--etdump FILE]\n"
    "  DIR          folder of an export: edge.json and model.pte\n"
    "  IMAGE        JPEG or PNG\n"
    "  --top_k      number of classes to name (default: 5)\n"
    "  --json       print JSON\n"
    "  --benchmark  time so many runs on noise\n"
    "  --threads    of the runtime (default: all cores)\n"
    "  --etdump     write a trace of the operations, which `python -m executorch.devtools.inspector.inspector_cli` reads\n";

struct Arguments {
  std::vector<std::string> words;
  int top_k = 5, runs = 0, threads = 0;
  bool as_json = false;
  std::string etdump;
};

int positive(const std::string& flag, const char* text) {
  char* end = nullptr;
  const long value = text ? std::strtol(text, &end, 10) : 0;
  if (!text || *end || value < 1 || value > 1000000) throw std::invalid_argument(flag + " must be a positive number");
  return int(value);
}

Arguments parse(int count, char** given) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string word = given[i];
    const char* next = i + 1 < count ? given[i + 1] : nullptr;
    if (word == "--json") arguments.as_json = true;
    else if (word == "--top_k") arguments.top_k = positive(word, next), ++i;
    else if (word == "--benchmark") arguments.runs = positive(word, next), ++i;
    else if (word == "--threads") arguments.threads = positive(word, next), ++i;
    else if (word == "--etdump" && next) arguments.etdump = next, ++i;
    else if (word.starts_with("--")) throw std::invalid_argument("unknown option " + word);
    else arguments.words.push_back(word);
  }
  if (arguments.words.empty() || (arguments.words.size() == 1) != (arguments.runs > 0)) {
    throw std::invalid_argument("give a folder, and either images or --benchmark");
  }
  return arguments;
}

void benchmark(Classifier& classifier, const Arguments& arguments) {
  Bytes input = classifier.noise();
  std::vector<double> times;
  for (int run = 0; run < arguments.runs + std::max(arguments.runs / 10, 1); ++run) {
    const auto start = std::chrono::steady_clock::now();
    classifier.probabilities(input);
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  times.erase(times.begin(), times.end() - arguments.runs);  // the warm-up
  std::sort(times.begin(), times.end());
  auto percentile = [&](double share) {
    const double place = share * double(times.size() - 1);
    const size_t below = size_t(place), above = std::min(below + 1, times.size() - 1);
    return times[below] + (place - double(below)) * (times[above] - times[below]);
  };
  const double p50 = percentile(0.5), p90 = percentile(0.9), p99 = percentile(0.99);
  if (arguments.as_json) {
    std::cout << json{{"p50_ms", p50}, {"p90_ms", p90}, {"p99_ms", p99}, {"repeats", arguments.runs}}.dump() << "\n";
  } else {
    std::printf("p50 %.3f ms, p90 %.3f ms, p99 %.3f ms (%d runs)\n", p50, p90, p99, arguments.runs);
  }
}

int predict(Classifier& classifier, const Arguments& arguments) {
  json results = json::array();
  int failed = 0;
  for (size_t i = 1; i < arguments.words.size(); ++i) {
    const std::string& image = arguments.words[i];
    try {
      Bytes input = classifier.input_of(read_picture(image));
      const auto shares = classifier.probabilities(input);
      std::vector<size_t> order(shares.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return shares[a] > shares[b]; });
      order.resize(std::min(order.size(), size_t(arguments.top_k)));
      json predictions = json::array();
      const bool in_one_line = arguments.top_k == 1;
      if (!arguments.as_json && !in_one_line) std::printf("%s\n", image.c_str());
      for (size_t at : order) {
        predictions.push_back({{"label", classifier.labels[at]}, {"probability", shares[at]}});
        const char* label = classifier.labels[at].c_str();
        if (!arguments.as_json && in_one_line) std::printf("%6.2f%%  %s  %s\n", 100 * shares[at], label, image.c_str());
        else if (!arguments.as_json) std::printf("  %6.2f%%  %s\n", 100 * shares[at], label);
        std::fflush(stdout);
      }
      results.push_back({{"image", image}, {"predictions", predictions}});
    } catch (const std::exception& error) {  // of one image; the others are told
      std::cerr << "error: " << (dynamic_cast<const Explained*>(&error) ? "" : image + ": ") << error.what() << "\n";
      failed = 1;
    }
  }
  if (arguments.as_json) std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  return failed;
}

int main(int count, char** given) {
  std::ios::sync_with_stdio(true);
  try {
    const Arguments arguments = parse(count, given);
    if (arguments.threads) {
      executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(uint32_t(arguments.threads));
    }
    Classifier classifier(arguments.words[0], !arguments.etdump.empty());
    const int code = arguments.runs ? (benchmark(classifier, arguments), 0) : predict(classifier, arguments);
    if (!arguments.etdump.empty()) classifier.write_trace(arguments.etdump);
    return code;
  } catch (const std::invalid_argument& error) {
    std::cerr << USAGE << "error: " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {  // a manifest without a field that is needed, too
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
