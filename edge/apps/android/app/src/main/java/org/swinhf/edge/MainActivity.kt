package org.swinhf.edge

import android.Manifest
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.os.Bundle
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
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

/** A preview of the camera, a button, and the five most probable classes of the picture that it takes. */
class MainActivity : ComponentActivity() {
    private val worker = Executors.newSingleThreadExecutor()
    private val permission = registerForActivityResult(ActivityResultContracts.RequestPermission()) { granted ->
        if (granted) camera.bindToLifecycle(this) else answer.text = "The app needs the camera; allow it in the settings."
    }
    private lateinit var camera: LifecycleCameraController
    private lateinit var answer: TextView
    private lateinit var shutter: Button
    private lateinit var classifier: Classifier

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        camera = LifecycleCameraController(this)
        answer = TextView(this).apply { setPadding(32, 32, 32, 32) }
        shutter = Button(this).apply {
            text = "Classify"
            isEnabled = false
            setOnClickListener { takePicture() }
        }
        val preview = PreviewView(this).apply {
            controller = camera
            scaleType = PreviewView.ScaleType.FIT_CENTER // all of it is classified, so all of it is shown
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            addView(preview, LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f))
            addView(answer, MATCH_PARENT, WRAP_CONTENT)
            addView(shutter, MATCH_PARENT, WRAP_CONTENT)
        })
        permission.launch(Manifest.permission.CAMERA)
        inBackground {
            classifier = loadClassifier()
            runOnUiThread { shutter.isEnabled = true }
        }
    }

    override fun onDestroy() {
        super.onDestroy()
        worker.shutdown()
    }

    /** The program of the assets; ExecuTorch reads files only. */
    private fun loadClassifier(): Classifier {
        val contract = assets.open("contract.json").bufferedReader().use { it.readText() }
        val program = File(filesDir, "model.pte")
        assets.open("model.pte").use { from -> program.outputStream().use { to -> from.copyTo(to) } }
        return Classifier(program.path, Contract.parse(contract))
    }

    private fun takePicture() {
        shutter.isEnabled = false
        camera.takePicture(worker, object : ImageCapture.OnImageCapturedCallback() {
            override fun onCaptureSuccess(image: ImageProxy) = inBackground {
                val bitmap = image.use { upright(it) }
                val best = classifier.classify(toPicture(bitmap)).take(5)
                show(best.joinToString("\n") { "%5.1f %%  %s".format(100 * it.probability, it.label) })
            }

            override fun onError(exception: ImageCaptureException) = show("No picture: ${exception.message}")
        })
    }

    private fun inBackground(work: () -> Unit) = worker.execute {
        try {
            work()
        } catch (error: Exception) {
            show("$error")
        }
    }

    private fun show(text: String) = runOnUiThread {
        answer.text = text
        shutter.isEnabled = ::classifier.isInitialized
    }
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
