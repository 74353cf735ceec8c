package org.swinhf.edge

import android.Manifest
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.os.Bundle
import android.text.SpannableStringBuilder
import android.text.Spanned.SPAN_EXCLUSIVE_EXCLUSIVE
import android.text.style.ForegroundColorSpan
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.FrameLayout
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.contract.ActivityResultContracts
import androidx.camera.core.ImageCapture
import androidx.camera.core.ImageCaptureException
import androidx.camera.core.ImageProxy
import androidx.camera.view.LifecycleCameraController
import androidx.camera.view.PreviewView
import java.io.File
import java.util.concurrent.Executors

private const val LARGEST_SIDE = 1024 // of a picture whose pixels are given classes

/** A preview of the camera, a button, and what the program says of the picture: its classes, or those of its pixels. */
class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor()
    private val permission = registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
        if (granted) camera.bindToLifecycle(this) else answer.text = "The app needs the camera; allow it in the settings."
    }
    private lateinit var camera: LifecycleCameraController
    private lateinit var answer: TextView
    private lateinit var shutter: Button
    private lateinit var overlay: ImageView
    private lateinit var describe: (Bitmap) -> Answer

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        camera = LifecycleCameraController(this)
        answer = TextView(this).apply { setPadding(32, 32, 32, 32) }
        shutter = Button(this).apply {
            text = "Take a picture"
            isEnabled = false
            setOnClickListener { takePicture() }
        }
        val preview = PreviewView(this).apply {
            controller = camera
            scaleType = PreviewView.ScaleType.FIT_CENTER // all of it is classified, so all of it is shown
        }
        overlay = ImageView(this).apply {
            visibility = View.GONE
            setBackgroundColor(Color.BLACK)
            setOnClickListener { visibility = View.GONE } // back to the camera
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            addView(FrameLayout(context).apply {
                addView(preview, MATCH_PARENT, MATCH_PARENT)
                addView(overlay, MATCH_PARENT, MATCH_PARENT)
            }, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
            addView(answer, MATCH_PARENT, WRAP_CONTENT)
            addView(shutter, MATCH_PARENT, WRAP_CONTENT)
        })
        permission.launch(Manifest.permission.CAMERA)
        inBackground {
            describe = loadProgram()
            runOnUiThread { shutter.isEnabled = true }
        }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.shutdown()
    }

    /** What the program of the assets says of a picture; ExecuTorch reads files only. */
    private fun loadProgram(): (Bitmap) -> Answer {
        val contract = Contract.parse(assets.open("contract.json").bufferedReader().use { it.readText() })
        val program = File(filesDir, "model.pte")
        assets.open("model.pte").use { from -> program.outputStream().use { to -> from.copyTo(to) } }
        if (contract.segments) {
            val segmenter = Segmenter(program.path, contract)
            return { segmented(it, segmenter, contract) }
        }
        val classifier = Classifier(program.path, contract)
        return { classified(it, classifier) }
    }

    private fun takePicture() {
        shutter.isEnabled = false
        camera.takePicture(worker, object : ImageCapture.OnImageCapturedCallback() {
            override fun onCaptureSuccess(image: ImageProxy) = inBackground {
                show(describe(image.use { upright(it) }))
            }

            override fun onError(exception: ImageCaptureException) = show(Answer("No picture: ${exception.message}"))
        })
    }

    private fun inBackground(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: Exception) {
            show(Answer("$error"))
        }
    }

    private fun show(found: Answer) = runOnUiThread {
        answer.text = found.text
        overlay.setImageBitmap(found.picture)
        overlay.visibility = if (found.picture == null) View.GONE else View.VISIBLE
        shutter.isEnabled = ::describe.isInitialized
    }
}

/** What is said of a picture, in coloured text, and a picture to show with it. */
private class Answer(val text: CharSequence, val picture: Bitmap? = null)

/** The most probable classes of a picture and, if the program tells, what speaks for the first of them. */
private fun classified(bitmap: Bitmap, classifier: Classifier): Answer {
    val found = classifier.classify(toPicture(bitmap))
    val best = found.predictions.take(5)
    val lines = best.joinToString("\n") { "%5.1f %%  %s".format(100 * it.probability, it.label) }
    val heat = found.heat ?: return Answer(lines)
    val over = Bitmap.createBitmap(heat.pixels, heat.width, heat.height, Bitmap.Config.ARGB_8888)
    return Answer("$lines\nred: for ${best[0].label}, blue: against it", over)
}

/** The classes of the pixels over a picture, and a legend with their shares. */
private fun segmented(bitmap: Bitmap, segmenter: Segmenter, contract: Contract): Answer {
    val shown = shrunk(bitmap)
    val map = segmenter.segment(toPicture(bitmap), shown.height, shown.width)
    val picture = toPicture(shown)
    val over = Bitmap.createBitmap(map.width, map.height, Bitmap.Config.ARGB_8888)
    for (y in 0 until map.height) {
        over.setPixels(map.over(picture.row(y), y, contract.palette), 0, map.width, 0, y, map.width, 1)
    }
    val shares = map.shares(contract.labels.size).withIndex().filter { it.value > 0 }.sortedByDescending { it.value }.take(5)
    val legend = SpannableStringBuilder()
    for ((number, share) in shares) {
        val (red, green, blue) = contract.palette[number]
        legend.append("\u25A0 ", ForegroundColorSpan(Color.rgb(red, green, blue)), SPAN_EXCLUSIVE_EXCLUSIVE)
        legend.append("%5.1f %%  %s\n".format(100 * share, contract.labels[number]))
    }
    return Answer(legend.trim(), over)
}

/** A bitmap no larger than what a screen can show. */
private fun shrunk(bitmap: Bitmap): Bitmap {
    val factor = LARGEST_SIDE.toFloat() / maxOf(bitmap.width, bitmap.height)
    if (factor >= 1) return bitmap
    return Bitmap.createScaledBitmap(bitmap, (bitmap.width * factor).toInt(), (bitmap.height * factor).toInt(), true)
}

/** What the camera saw, turned as the phone was held. */
private fun upright(image: ImageProxy): Bitmap {
    val turn = Matrix().apply { postRotate(image.imageInfo.rotationDegrees.toFloat()) }
    return Bitmap.createBitmap(image.toBitmap(), 0, 0, image.width, image.height, turn, false)
}

/** The pixels of a bitmap, transparency laid on white. */
private fun toPicture(bitmap: Bitmap): Picture {
    var opaque = bitmap
    if (bitmap.hasAlpha()) {
        opaque = Bitmap.createBitmap(bitmap.width, bitmap.height, Bitmap.Config.ARGB_8888)
        Canvas(opaque).apply { drawColor(Color.WHITE) }.drawBitmap(bitmap, 0f, 0f, null)
    }
    val row = IntArray(opaque.width)
    return Picture(opaque.height, opaque.width) { y -> row.also { opaque.getPixels(it, 0, it.size, 0, y, it.size, 1) } }
}
