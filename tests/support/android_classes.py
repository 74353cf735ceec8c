"""The signatures of Android, CameraX and ExecuTorch that the app uses, in Java, for Kotlin's compiler to check it against.

They are written after the documentation of these classes; nothing of them runs.
"""

from pathlib import Path

VIEW_GROUP = "android.view.ViewGroup"
CLASSES = {  # by their full names: what they extend and what is in them
    "android.Manifest": ("", "public static class permission { public static final String CAMERA = null; }"),
    "android.content.Context": ("", "public android.content.res.AssetManager getAssets() { return null; }"),
    "android.content.res.AssetManager": ("", "public java.io.InputStream open(String name) { return null; }"),
    "android.graphics.Bitmap": (
        "",
        """
        public enum Config { ARGB_8888 }
        public static Bitmap createBitmap(int width, int height, Config config) { return null; }
        public static Bitmap createBitmap(int[] colors, int width, int height, Config config) { return null; }
        public static Bitmap createBitmap(Bitmap b, int x, int y, int w, int h, Matrix m, boolean filter) { return null; }
        public static Bitmap createScaledBitmap(Bitmap b, int width, int height, boolean filter) { return null; }
        public int getWidth() { return 0; }
        public int getHeight() { return 0; }
        public boolean hasAlpha() { return false; }
        public void getPixels(int[] pixels, int offset, int stride, int x, int y, int width, int height) {}
        public void setPixels(int[] pixels, int offset, int stride, int x, int y, int width, int height) {}
        """,
    ),
    "android.graphics.Canvas": (
        "",
        """
        public Canvas(Bitmap bitmap) {}
        public void drawColor(int color) {}
        public void drawBitmap(Bitmap bitmap, float left, float top, Paint paint) {}
        """,
    ),
    "android.graphics.Color": (
        "",
        "public static final int WHITE = -1, BLACK = 0; public static int rgb(int r, int g, int b) { return 0; }",
    ),
    "android.graphics.Matrix": ("", "public boolean postRotate(float degrees) { return true; }"),
    "android.graphics.Paint": ("", ""),
    "android.os.Bundle": ("", ""),
    "android.text.SpannableStringBuilder": (
        "implements CharSequence",
        """
        public SpannableStringBuilder append(CharSequence text) { return this; }
        public SpannableStringBuilder append(CharSequence text, Object what, int flags) { return this; }
        public int length() { return 0; }
        public char charAt(int index) { return 0; }
        public CharSequence subSequence(int start, int end) { return this; }
        """,
    ),
    "android.text.Spanned": ("", "public static final int SPAN_EXCLUSIVE_EXCLUSIVE = 33;"),
    "android.text.style.ForegroundColorSpan": ("", "public ForegroundColorSpan(int color) {}"),
    "android.view.View": (
        "",
        """
        public static final int VISIBLE = 0, GONE = 8;
        public interface OnClickListener { void onClick(View view); }
        public View(android.content.Context context) {}
        public android.content.Context getContext() { return null; }
        public void setPadding(int left, int top, int right, int bottom) {}
        public boolean isEnabled() { return true; }
        public void setEnabled(boolean enabled) {}
        public int getVisibility() { return 0; }
        public void setVisibility(int visibility) {}
        public void setBackgroundColor(int color) {}
        public void setOnClickListener(OnClickListener listener) {}
        public void setFitsSystemWindows(boolean fits) {}
        public boolean getFitsSystemWindows() { return true; }
        """,
    ),
    VIEW_GROUP: (
        "extends View",
        """
        public static class LayoutParams {
            public static final int MATCH_PARENT = -1, WRAP_CONTENT = -2;
            public LayoutParams(int width, int height) {}
        }
        public ViewGroup(android.content.Context context) { super(context); }
        public void addView(View child, int width, int height) {}
        public void addView(View child, LayoutParams params) {}
        """,
    ),
    "android.widget.TextView": (
        "extends android.view.View",
        """
        public TextView(android.content.Context context) { super(context); }
        public final CharSequence getText() { return null; }
        public final void setText(CharSequence text) {}
        """,
    ),
    "android.widget.Button": (
        "extends TextView",
        "public Button(android.content.Context context) { super(context); }",
    ),
    "android.widget.ImageView": (
        "extends android.view.View",
        """
        public ImageView(android.content.Context context) { super(context); }
        public void setImageBitmap(android.graphics.Bitmap bitmap) {}
        """,
    ),
    "android.widget.FrameLayout": (
        f"extends {VIEW_GROUP}",
        "public FrameLayout(android.content.Context context) { super(context); }",
    ),
    "android.widget.LinearLayout": (
        f"extends {VIEW_GROUP}",
        """
        public static final int VERTICAL = 1;
        public static class LayoutParams extends android.view.ViewGroup.LayoutParams {
            public LayoutParams(int width, int height, float weight) { super(width, height); }
        }
        public LinearLayout(android.content.Context context) { super(context); }
        public int getOrientation() { return 0; }
        public void setOrientation(int orientation) {}
        """,
    ),
    "androidx.activity.ComponentActivity": (
        "extends android.content.Context",
        """
        protected void onCreate(android.os.Bundle state) {}
        protected void onDestroy() {}
        public void setContentView(android.view.View view) {}
        public final void runOnUiThread(Runnable action) {}
        public java.io.File getFilesDir() { return null; }
        public final <I, O> androidx.activity.result.ActivityResultLauncher<I> registerForActivityResult(
            androidx.activity.result.contract.ActivityResultContract<I, O> contract,
            androidx.activity.result.ActivityResultCallback<O> callback) { return null; }
        """,
    ),
    "androidx.activity.result.ActivityResultLauncher<I>": ("", "public void launch(I input) {}"),
    "androidx.activity.result.ActivityResultCallback<O>": ("interface", "void onActivityResult(O result);"),
    "androidx.activity.result.contract.ActivityResultContract<I, O>": ("", ""),
    "androidx.activity.result.contract.ActivityResultContracts": (
        "",
        "public static class RequestPermission extends ActivityResultContract<String, Boolean> {}",
    ),
    "androidx.camera.core.ImageCapture": (
        "",
        """
        public static abstract class OnImageCapturedCallback {
            public void onCaptureSuccess(ImageProxy image) {}
            public void onError(ImageCaptureException exception) {}
        }
        """,
    ),
    "androidx.camera.core.ImageCaptureException": ("extends Exception", ""),
    "androidx.camera.core.ImageInfo": ("", "public int getRotationDegrees() { return 0; }"),
    "androidx.camera.core.ImageProxy": (
        "implements AutoCloseable",
        """
        public void close() {}
        public int getWidth() { return 0; }
        public int getHeight() { return 0; }
        public ImageInfo getImageInfo() { return null; }
        public android.graphics.Bitmap toBitmap() { return null; }
        """,
    ),
    "androidx.camera.view.LifecycleCameraController": (
        "",
        """
        public LifecycleCameraController(android.content.Context context) {}
        public void bindToLifecycle(androidx.activity.ComponentActivity owner) {}
        public void takePicture(java.util.concurrent.Executor executor,
            androidx.camera.core.ImageCapture.OnImageCapturedCallback callback) {}
        """,
    ),
    "androidx.camera.view.PreviewView": (
        "extends android.widget.FrameLayout",
        """
        public enum ScaleType { FIT_CENTER }
        public PreviewView(android.content.Context context) { super(context); }
        public LifecycleCameraController getController() { return null; }
        public void setController(LifecycleCameraController controller) {}
        public ScaleType getScaleType() { return null; }
        public void setScaleType(ScaleType type) {}
        """,
    ),
    "org.json.JSONArray": (
        "",
        """
        public int length() { return 0; }
        public String getString(int index) { return null; }
        public int getInt(int index) { return 0; }
        public JSONArray getJSONArray(int index) { return null; }
        """,
    ),
    "org.json.JSONObject": (
        "",
        """
        public JSONObject(String text) {}
        public boolean isNull(String name) { return false; }
        public boolean getBoolean(String name) { return false; }
        public double getDouble(String name) { return 0; }
        public int getInt(String name) { return 0; }
        public String getString(String name) { return null; }
        public JSONArray getJSONArray(String name) { return null; }
        """,
    ),
    "org.pytorch.executorch.EValue": (
        "",
        "public static EValue from(Tensor tensor) { return null; } public Tensor toTensor() { return null; }",
    ),
    "org.pytorch.executorch.Module": (
        "",
        """
        public static Module load(String path) { return null; }
        public String[] getMethods() { return null; }
        public EValue[] execute(String method, EValue... inputs) { return null; }
        public EValue[] forward(EValue... inputs) { return null; }
        """,
    ),
    "org.pytorch.executorch.Tensor": (
        "",
        """
        public static Tensor fromBlob(float[] data, long[] shape) { return null; }
        public static Tensor fromBlobUnsigned(byte[] data, long[] shape) { return null; }
        public long[] shape() { return null; }
        public float[] getDataAsFloatArray() { return null; }
        public byte[] getDataAsUnsignedByteArray() { return null; }
        """,
    ),
}


def write_android_classes(folder: Path) -> list[Path]:
    """Write the classes as Java files; returns them."""
    files = []
    for full_name, (extends, body) in CLASSES.items():
        package, name = full_name.split("<")[0].rsplit(".", 1)
        type_parameters = full_name[len(f"{package}.{name}") :]
        kind = "interface" if extends == "interface" else "class"
        file = folder / package.replace(".", "/") / f"{name}.java"
        file.parent.mkdir(parents=True, exist_ok=True)
        head = f"public {kind} {name}{type_parameters} {'' if kind == 'interface' else extends}"
        file.write_text(f"package {package};\n{head} {{\n{body}\n}}\n")
        files.append(file)
    return files
